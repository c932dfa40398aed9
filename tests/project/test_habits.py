"""The files for people who work on the project agree with each other and with pyproject.toml."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

import usermem

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
CONTRIBUTING = ROOT / ".github" / "CONTRIBUTING.md"
SECURITY = ROOT / ".github" / "SECURITY.md"
HOOKS = ROOT / ".pre-commit-config.yaml"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()

pytestmark = pytest.mark.skipif(not WORKFLOW.exists(), reason="a source distribution has no .github")


def test_the_workflow_runs_the_pythons_of_the_classifiers() -> None:
    """From the oldest that pyproject.toml allows to at least the newest it names, without a gap."""
    tests, everything = (re.findall(r'"3\.(\d+)"', row) for row in re.findall(r"python: \[.*\]", WORKFLOW.read_text()))
    classified = re.findall(r":: 3\.(\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE)
    assert list(map(int, tests)) == list(range(int(tests[0]), int(tests[-1]) + 1))
    assert PROJECT["requires-python"] == f">=3.{tests[0]}"
    assert set(classified) <= set(tests)
    assert set(everything) <= set(classified)


def test_the_workflow_runs_what_must_pass() -> None:
    """The README's test command, taken from there, and .ci/run."""
    runs = re.findall(r"- run: (.*)", WORKFLOW.read_text())
    assert runs == ["""bash -euxo pipefail -c "$(grep -m1 -- '-m pytest' README.md)\"""", ".ci/run"]
    assert (ROOT / ".ci" / "run").is_file()


def test_the_hooks_are_the_linters_of_ci() -> None:
    """Each hook is a command of .ci/run, out of the same environment, and nothing is fetched."""
    hooks, ci = HOOKS.read_text(), (ROOT / ".ci" / "run").read_text()
    entries = re.findall(r"entry: (.*)", hooks)
    assert len(entries) == 3
    for entry in entries:
        words = [word for word in shlex.split(entry) if word != "--force-exclude"]
        assert " ".join(words[:2]) in ci
    assert re.findall(r"repo: (.*)", hooks) == ["local"]
    assert "://" not in hooks


def test_people_are_told_the_readmes_test_command() -> None:
    """CONTRIBUTING has the line that the README has."""
    (command,) = re.findall(r"^python3 -m venv .* -m pytest$", CONTRIBUTING.read_text(), re.MULTILINE)
    assert command in README


@pytest.mark.parametrize("path", [CONTRIBUTING, SECURITY], ids=lambda path: path.name)
def test_what_is_named_is_there(path: Path) -> None:
    """Paths of the repository, the README's sections and the public names of usermem that the text names."""
    text = path.read_text()
    for name in re.findall(r"`((?:tests|usermem|\.ci)/[\w./]+)`", text):
        assert (ROOT / name).exists(), name
    for section in re.findall(r'"([A-Z][\w ]+)"', text):
        assert f"\n## {section}\n" in README, section
    for name in re.findall(r"`usermem\.(\w+)`", text):
        assert hasattr(usermem, name), name


def test_the_changes_begin_with_this_version() -> None:
    """The README's first entry under Changes is the version that the package says."""
    changes = README.partition("\n## Changes\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### (.*)$", changes, re.MULTILINE)[0] == usermem.__version__
