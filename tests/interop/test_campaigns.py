"""The recipes in ``campaigns``, each run as a user runs it, find what is planted in their sample, share it, and end."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPES = Path(__file__).resolve().parent / "campaigns"


def needs(package: str) -> pytest.MarkDecorator:
    """Skip where a package of the interop extra is not installed."""
    found = importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(not found, reason=f"needs {package}: pip install 'usermem[interop]'")


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run this Python with the packages of the checkout."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # not those of xdist
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "interop"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env=ours | {"PYTHONPATH": path} | environment,
    )


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    """The address of a Redis server of the test's own, on a socket in its folder; nothing is kept on disk."""
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("needs Redis: apt-get install redis-server")
    socket = tmp_path / "redis"
    options = ("--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no", "--dir", str(tmp_path))
    process = subprocess.Popen([server, *options], stdout=subprocess.DEVNULL)
    try:
        limit = time.monotonic() + 10
        while not socket.exists():
            assert process.poll() is None and time.monotonic() < limit, "redis-server did not start"
            time.sleep(0.01)
        yield f"unix://{socket}"
    finally:
        process.terminate()
        process.wait(10)


def campaign(database: str, cwd: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A process of the shared campaign, which shows its progress after each example."""
    recipe = RECIPES / "shared_database.py"
    quietly = ("-q", "-s", "-p", "no:cacheprovider")
    return run("-m", "pytest", *quietly, *options, recipe, cwd=cwd, CAMPAIGN_REDIS=database, EVERY="0")


def examples_before_a_failure(stderr: str) -> int:
    """Which example was the first that failed, as the progress shows."""
    shown = re.findall(r"^campaign: (\d+) examples, \d+/s, \d+ edges, (\d+) failures, \d+ s$", stderr, re.MULTILINE)
    return next(int(examples) for examples, failures in shown if int(failures))


@needs("redis")
def test_what_one_process_finds_the_next_replays_first(redis: str, tmp_path: Path) -> None:
    """On another machine it fails on its first example; where Redis could not be written at first, nothing is lost."""
    found = []
    server = importlib.import_module("redis").Redis.from_url(redis)
    for machine, right, at_once in (("one", "-sadd", False), ("one", "+sadd", True), ("other", "+sadd", True)):
        (tmp_path / machine).mkdir(exist_ok=True)
        server.execute_command("ACL", "SETUSER", "default", right)
        result = campaign(redis, tmp_path / machine)
        assert result.returncode == 1, result.stdout + result.stderr
        assert (examples_before_a_failure(result.stderr) == 1) == at_once
        assert ("NoPermissionError" in result.stdout) == (not at_once)
        found += re.findall(r"^E +operations=(\[.*?\])", result.stdout, re.MULTILINE | re.DOTALL)
    server.close()
    assert "CopyIn" in found[0]
    assert found[0] == found[1]


@needs("redis")
@needs("xdist")
def test_two_processes_of_xdist_at_once(redis: str, tmp_path: Path) -> None:
    """Both workers run all of it, and each shows its progress."""
    result = campaign(redis, tmp_path, "-n", "2", "--dist", "each")
    assert "2 failed" in result.stdout, result.stdout + result.stderr
    assert {"gw0", "gw1"} == set(re.findall(r"^(gw\d): \d+ examples", result.stderr, re.MULTILINE))


@needs("distributed")
def test_seeds_are_mapped_over_a_cluster(tmp_path: Path) -> None:
    """Two processes load one snapshot; short failures come back from the seeds, and the progress is their sum."""
    result = run("-m", "campaigns.on_dask", "2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    failed = result.stdout.splitlines()
    assert failed
    assert all("CopyIn(addr=0x1" in line and line.count("addr=") <= 3 for line in failed)
    last = result.stderr.splitlines()[-1]
    shown = re.fullmatch(r"campaign: (\d+) examples, \d+/s, (\d+) edges, 1 failures, \d+ s", last)
    assert shown is not None, result.stderr
    assert int(shown[1]) > 3
    assert int(shown[2]) > 5


@needs("atheris")
def test_coverage_guides_to_the_fault(tmp_path: Path) -> None:
    """By atheris, within 100,000 runs, each of which it shows in its own way."""
    result = run("-m", "campaigns.guided", tmp_path, "-runs=100000", "-seed=1", "-max_len=256", cwd=tmp_path)
    assert "AssertionError: CopyIn(" in result.stdout + result.stderr
    assert result.returncode != 0
    assert "operations: [" in result.stdout + result.stderr
    (crash,) = tmp_path.glob("crash-*")
    codec = importlib.import_module("usermem.testing.corpus")
    sample = importlib.import_module("campaigns.sample")
    with sample.begin() as guest, pytest.raises(AssertionError, match=r"CopyIn\("):
        sample.check(guest, codec.Codec(sample.LAYOUT.edges).decode(crash.read_bytes()))


@pytest.mark.parametrize("name", ["shared_database", "on_dask", "guided"])
def test_recipes_are_short(name: str) -> None:
    """At most 40 lines behind the imports, blank ones left out, and no private name."""
    source = (RECIPES / f"{name}.py").read_text()
    tree = ast.parse(source)
    code = [node for node in tree.body[1:] if not isinstance(node, ast.Import | ast.ImportFrom)]
    lines = "\n".join(source.splitlines()[code[0].lineno - 1 :]).split("\n")
    assert len([line for line in lines if line.strip()]) <= 40
    assert not re.search(r"usermem[\w.]*\._|\b_[a-z]\w*\(", source)
