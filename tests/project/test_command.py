"""The command ``usermem``: its subcommands and short forms, its help, its version, and what it writes on a terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import usermem
import usermem.tour
from usermem.__main__ import main
from usermem.doctor import doctor

COMMANDS = ("tour", "doctor", "maps", "read", "string", "argv")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file in the current folder that has a command's name."""
    monkeypatch.chdir(tmp_path)
    Path("doctor").write_bytes(b"a file's bytes")
    return "doctor"


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    """It is the package's own, which the wheel's is taken from."""
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"usermem {usermem.__version__}\n"
    assert usermem.__version__[0].isdecimal()


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command has help, and the help of all names each."""
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"] if command else ["--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: usermem {command}".strip())
    assert [name for name in COMMANDS if f"\n    {name} " in printed] == ([] if command else list(COMMANDS))


@pytest.mark.parametrize("argv", [["tour", "doctor"], ["./doctor"], ["--", "./doctor"]])
def test_forms_of_the_tour(argv: list[str], file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A file after ``tour`` or alone; a command's name is the command, unless it is written as a path."""
    assert main(argv) == 0
    assert capsys.readouterr().out.startswith(f"{file}: 14 bytes")
    assert main([file]) == 0
    assert capsys.readouterr().out == doctor()


@pytest.mark.parametrize("argv", [["--no-such-option"], ["docter"], ["tour", __file__, "b"], ["doctor", "b"]])
def test_wrong_arguments(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """They are 2, with the usage; a word that is no command and no file is told where the commands are."""
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("usage: usermem ")
    assert ("usermem --help" in printed) == (argv == ["docter"])


@pytest.mark.parametrize("width", [30, 60, 80, 200])
def test_the_doctors_columns(width: int) -> None:
    """No word is cut, each line fits, and the reasons stand under one another."""
    report, whole = doctor(width=width), doctor(width=10_000)
    start = next(line.index("CPython") for line in whole.splitlines() if "CPython" in line)
    for line in report.splitlines():
        assert len(line) <= max(width, start + 20) or " " not in line[start:]
        assert line[start - 1] == " " != line[start]
    assert report.split() == whole.split()


def on_a_terminal(*command: str, **environment: str) -> str:
    """What a command writes when both of its outputs are a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=env | {"TERM": "xterm"} | environment
    ) as child:
        os.close(theirs)
        written = b""
        while True:
            try:
                written += os.read(ours, 1 << 16)
            except OSError:  # EIO: nobody has it open any more
                break
        assert child.wait(60) == 0
    os.close(ours)
    return written.decode()


@pytest.mark.parametrize("command", ["tour", "doctor"])
def test_colours(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Headings and names are bold on a terminal; NO_COLOR, a dumb terminal and a pipe have no escape sequence."""
    run = (sys.executable, "-m", "usermem", command)
    assert "\x1b[1m" in on_a_terminal(*run)
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in on_a_terminal(*run, **environment)
    assert main([command]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("\n4. execve\n   argv", "1"),
        ("   the count under the lock is 1, WRONG", "31"),
        ("   the memory is NOT WHAT IT WAS", "31"),
        ("\nAfter 2 ways the bytes are NOT THE SAME", "31"),
        ("\nAfter 2 ways the bytes are the same", ""),
        ("0000  4e 4f 54  | NOT |", ""),
    ],
)
def test_what_is_painted(
    text: str, code: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first line of a heading bold, what the tour says of failures red, and the file's own bytes plain."""

    def tour(file: Path, say: Callable[[str], None]) -> int:
        say(text)
        return 0

    monkeypatch.setattr(usermem.tour, "tour", tour)
    monkeypatch.setattr("usermem.__main__.has_colour", lambda: True)
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"\x1b\[(\d+)m.", printed, re.DOTALL) == ([code, "0"] if code else [])
    assert re.sub(r"\x1b\[\d+m", "", printed) == f"{text}\n"
    assert "argv\x1b" not in printed


@pytest.mark.parametrize("command", ["tour", "doctor"])
def test_a_reader_that_goes_away(command: str) -> None:
    """As in a pipe to head: no traceback."""
    run = f"{sys.executable} -m usermem {command} | true"
    done = subprocess.run(["sh", "-c", run], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""


def test_a_pipe_of_its_own_that_breaks(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """That is an error: only the standard output's reader may go away in silence."""

    def broken(file: Path, say: object) -> int:
        raise BrokenPipeError("a pipe of its own")

    monkeypatch.setattr(usermem.tour, "tour", broken)
    with pytest.raises(BrokenPipeError, match="of its own"):
        main(["tour"])
