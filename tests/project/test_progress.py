"""Progress on a terminal: how far long work is, erased at its end; nothing in a pipe, nothing for short work."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from usermem import terminal
from usermem.terminal import Progress
from usermem.tour import tour


class Terminal(io.StringIO):
    """What is written to a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal as the standard error, and all work is long."""
    stderr = Terminal()
    # Not that of sys, which pytest sets anew for each phase.
    monkeypatch.setattr(terminal, "sys", SimpleNamespace(stderr=stderr, stdout=sys.stdout))
    monkeypatch.setattr(terminal, "_QUIET", 0)
    monkeypatch.setattr(terminal, "_BETWEEN", 0)
    return stderr


def test_a_line_that_is_erased(stderr: Terminal) -> None:
    """Each line covers the one before, and spaces the last, also after an error."""
    with pytest.raises(ValueError), Progress("work", 8) as show:
        show(8)
        show(2)
        raise ValueError
    assert stderr.getvalue() == "\r   work: 100%\r   work: 25% \r" + " " * len("   work: 25%") + "\r"


def test_no_total(stderr: Terminal) -> None:
    """Of nothing, all is done: as of files of /proc, that say nothing of their size."""
    with Progress("work", 0) as show:
        show(5)
    assert "100%" in stderr.getvalue()


def test_short_work_shows_nothing(stderr: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does work in a pipe."""
    monkeypatch.setattr(terminal, "_QUIET", 60)
    with Progress("work", 8) as show:
        show(8)
    monkeypatch.setattr(terminal, "_QUIET", 0)
    monkeypatch.setattr(stderr, "isatty", lambda: False)
    with Progress("work", 8) as show:
        show(8)
    assert stderr.getvalue() == ""


def test_lines_come_slowly(stderr: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten a second, not one for each step."""
    monkeypatch.setattr(terminal, "_BETWEEN", 60)
    with Progress("work", 1000) as show:
        for done in range(1000):
            show(done)
    assert stderr.getvalue().count("%") == 1


def test_the_tour(stderr: Terminal, tmp_path: Path) -> None:
    """It shows how far the file is read, has come out of the pipe, and has come in by TLS."""
    file = tmp_path / "file"
    file.write_bytes(bytes(3 << 20))
    assert tour(file, lambda text: None) == 0
    for what in ("read", "writev(pipe)", "readv(socket)"):
        shown = [int(percent) for percent in re.findall(rf" {re.escape(what)}: (\d+)%", stderr.getvalue())]
        assert len(shown) > 2
        assert shown == sorted(shown)
        assert shown[-1] == 100
