"""The README keeps its word: its code runs, its commands are the ones that are run, its names and links are there."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, seed

import hostarch
import safemem
import usermem

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TOUR = "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/python -m usermem"
TESTS = "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/python -m pytest"
CI = ROOT / ".ci" / "run"


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def run_code() -> dict[str, Any]:
    """Run the Python blocks in their order, in one namespace."""
    namespace: dict[str, Any] = {"__name__": "readme"}
    for number, block in enumerate(blocks("python"), 1):
        exec(compile(block, f"README.md, Python block {number}", "exec"), namespace)
    return namespace


def test_code_runs() -> None:
    """What the Python blocks assert holds."""
    found = blocks("python")
    assert len(found) >= 3
    assert sum(block.count("assert ") for block in found) >= 5
    run_code()


def test_the_fuzzed_system_call_is_found_out() -> None:
    """The test of the README finds its buggy readv within seconds, by a wrong count; the right one passes it.

    The example that it finds is not made shorter here, which takes most of the time.
    """
    (block,) = [block for block in blocks("python") if "def sys_readv(memory" in block]
    assert "@settings(max_examples=500)" in block

    def pasted(max_examples: int) -> dict[str, Any]:
        drawn = f"@settings(max_examples={max_examples}, phases=[Phase.generate])"
        namespace: dict[str, Any] = {"__name__": "pasted", "Phase": Phase}
        source = block.replace("@settings(max_examples=500)", drawn)
        exec(compile(source, "README.md, fuzz your simulator", "exec"), namespace)
        return namespace

    readme = pasted(500)
    start = time.monotonic()
    with pytest.raises(AssertionError) as caught:
        seed(1)(readme["test_readv"])()  # the same draws in each run; of 20 other seeds all find it
    assert time.monotonic() - start < 60
    assert "layout=Layout(AMD64, (Mapping(0x" in "".join(caught.value.__notes__)
    readme = pasted(100)
    readme["sys_readv"] = readme["expected_readv"]
    readme["test_readv"]()


def test_the_commands_are_at_the_top() -> None:
    """Both commands stand within the first 25 lines, each on a line of its own."""
    top = README.splitlines()[:25]
    assert TOUR in top
    assert TESTS in top


@pytest.mark.skipif(not CI.exists(), reason="a source distribution has no .ci")
def test_ci_runs_the_readmes_test_command() -> None:
    """.ci/run takes the test command from the README, and starts pytest beside it for interop only."""
    script = CI.read_text()
    (taking,) = [line for line in script.splitlines() if line.startswith("test_command=")]
    found = subprocess.run(
        ["bash", "-euc", f'{taking}\nprintf %s "$test_command"'], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert (found.returncode, found.stdout) == (0, TESTS)
    assert re.search(r'^bash .*"\$test_command"$', script, re.MULTILINE)
    rest = [line for line in script.splitlines() if line != taking and not line.startswith("#")]
    extras = ".venv/bin/python -m pytest -q -n auto tests/tls tests/interop"
    assert [line for line in rest if "pytest" in line] == [extras]


def test_names_are_there() -> None:
    """Every name in the first column of the tables exists."""
    places: list[object] = [usermem, safemem, hostarch, usermem.IO, usermem.AddressSpace]
    cells = re.findall(r"^\| (`.*?) \|", README, re.MULTILINE)
    names = [name for cell in cells for name in re.findall(r"`([\w.]+)`", cell)]
    assert len(names) > 25
    for name in names:
        first, *rest = name.split(".")
        found = [getattr(place, first) for place in places if hasattr(place, first)]
        if first in ("hostarch", "safemem", "usermem"):
            continue
        assert found, name
        for part in rest:
            assert hasattr(found[0], part), name


def test_links_lead_somewhere() -> None:
    """Every file that is linked or named with its path exists."""
    linked = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    named = re.findall(r"`((?:usermem|safemem|hostarch|tests)/[\w/.]+)`", README)
    assert linked
    assert named
    for name in linked + named:
        assert (ROOT / name).exists(), name
