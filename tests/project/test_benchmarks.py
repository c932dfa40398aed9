"""The benchmarks run and say what they should. How fast anything is, no test says: machines differ and are busy."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

_BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize(
    ("suite", "only", "count"),
    [("copy", "u32", 2), ("walk", "BlockSeq", 3), ("syscall", "uint64", 1), ("observe", "filter", 3)],
)
def test_a_suite_prints_and_writes_its_rows(suite: str, only: str, count: int, tmp_path: Path) -> None:
    """Each row has a positive ratio and a bar, and --json writes what was printed."""
    out = tmp_path / "rows.json"
    command = [sys.executable, str(_BENCHMARKS), suite, "--only", only, "--json", str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=_BENCHMARKS.parent.parent, check=True
    )
    rows = json.loads(out.read_text())
    assert len(rows) == count
    for row in rows:
        assert row["ratio"] > 0
        assert row["bar"] > 0
        assert row["row"].split()[0] in done.stdout


def test_the_simulators_rows(tmp_path: Path) -> None:
    """System calls that both sides make with equal results, strings and structs, where the interop extra is there."""
    for module in ("unicorn", "elftools"):
        pytest.importorskip(module, reason="needs the extra interop", exc_type=ImportError)
    test_a_suite_prints_and_writes_its_rows("simulator", "stat", 3, tmp_path)


def test_check_fails_when_a_bar_is_missed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """--check is 1 if a row misses its bar and 0 if none does; without it a miss is only said."""
    monkeypatch.syspath_prepend(str(_BENCHMARKS))
    import walk_rows

    main = _load_main()
    for ratio, argv, status in ((2.0, ["walk", "--check"], 1), (1.0, ["walk", "--check"], 0), (2.0, ["walk"], 0)):
        row = walk_rows.WalkRow("AddrRangeSeq", 1000, 5.0, ratio)
        monkeypatch.setattr(walk_rows, "rows", lambda row=row: iter([row]))
        monkeypatch.setattr(sys, "argv", ["benchmarks", *argv])
        assert main() == status
        assert ("MISSED" in capsys.readouterr().out) == (ratio > row.bar)


def test_all_ends_with_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A line for each suite: its rows, its time, what it missed; a suite that fails is said and makes the result 1."""
    main, out = _load_main(), tmp_path / "rows.json"
    monkeypatch.setitem(main.__globals__, "_SUITES", ["copy", "walk"])
    monkeypatch.setattr(sys, "argv", ["benchmarks", "all", "--only", "BlockSeq", "--json", str(out)])
    assert main() == 0
    table = capfd.readouterr().out.partition("\nsuite ")[2].splitlines()
    rows = json.loads(out.read_text())
    assert {row["suite"] for row in rows} >= {"walk"}
    missed = [row["row"] for row in rows if row["suite"] == "walk" and row["missed"]]
    assert [line.split()[0] for line in table[1:]] == ["copy", "walk"]
    assert f"{3 - len(missed)} of 3" in table[2]
    assert all(name in table[2] for name in missed)
    monkeypatch.setitem(main.__globals__, "_SUITES", ["no such suite"])
    assert main() == 1
    assert "failed" in capfd.readouterr().out


def _load_main() -> Callable[[], int]:
    main: Callable[[], int] = runpy.run_path(str(_BENCHMARKS / "__main__.py"))["main"]
    return main
