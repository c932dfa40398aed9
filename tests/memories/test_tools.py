"""python -m usermem maps, read, string, argv: what they print, and their exit codes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core_writer import CoreFile, Load
from hostarch import mman
from other_process import OtherProcess
from usermem.__main__ import main

BASE = 0x2000_0000
PAGE = 4096
RW = mman.PROT_READ | mman.PROT_WRITE
TEXT = b"a string\0" + bytes(7) + b"more" * 2000


@pytest.fixture(scope="module")
def memories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """A process and a core with the same memory at BASE."""
    content = TEXT[: 2 * PAGE].ljust(2 * PAGE, b"\0")
    path = CoreFile([Load(BASE, 6, content)], [(BASE, BASE + PAGE, 0, "/a file")]).write(
        tmp_path_factory.mktemp("cores") / "core"
    )
    with OtherProcess() as other:
        other.mmap(BASE, 2 * PAGE, RW)
        other.poke(BASE, content)
        yield [str(other.pid), str(path)]


def test_string_and_read(memories: list[str], capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Both give the same of a process and of a core: text, hex with holes, raw bytes."""
    for memory in memories:
        assert main(["string", memory, hex(BASE)]) == 0
        assert capfdbinary.readouterr().out == b"a string\n"
        assert main(["read", memory, str(BASE), "0x10"]) == 0
        assert b"61 20 73 74 72 69 6e 67  00" in capfdbinary.readouterr().out
        assert main(["read", memory, hex(BASE), "9", "--raw"]) == 0
        assert capfdbinary.readouterr().out == b"a string\0"
        assert main(["read", memory, hex(BASE + 2 * PAGE - 8), "16"]) == 0
        assert capfdbinary.readouterr().out.count(b" --") == 8


def test_what_cannot_be_read_is_1(memories: list[str], capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """The bytes before it are written, the reason is on the standard error, and nothing else."""
    for memory in memories:
        assert main(["read", memory, hex(BASE + 2 * PAGE - 4), "9", "--raw"]) == 1
        out, err = capfdbinary.readouterr()
        assert (len(out), err.count(b"\n")) == (4, 1)
        assert b"0x20002000 (r--, unmapped)" in err
        assert main(["string", memory, hex(BASE + 16), "--max", "5"]) == 1
        out, err = capfdbinary.readouterr()
        assert out == b"morem\n"
        assert b"File name too long" in err
        assert main(["argv", memory, "0x10"]) == 1
        assert b"Bad address" in capfdbinary.readouterr().err
    assert main(["argv", memories[1]]) == 1
    assert b"the arguments are not where the program was given them" in capfdbinary.readouterr().err
    for name, text in (
        ("99999999999", b"No such process"),
        ("/none", b"No such file"),
        (__file__, b"it is no ELF file"),
    ):
        assert main(["maps", name]) == 1
        assert text in capfdbinary.readouterr().err


def test_wrong_arguments_are_2(capsys: pytest.CaptureFixture[str]) -> None:
    """argparse says which."""
    for argv in (["read", "1"], ["read", "1", "here", "4"], ["read", "1", "0", "-4"], ["maps"], ["string", "1"]):
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert caught.value.code == 2
        assert capsys.readouterr().err.startswith("usage: usermem ")


def test_maps(memories: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The mappings with their names."""
    assert main(["maps", memories[0]]) == 0
    out = capsys.readouterr().out
    assert "[stack]" in out
    assert f"{BASE:016x}-{BASE + 2 * PAGE:016x}      8 KiB  rw-p" in out
    assert main(["maps", memories[1]]) == 0
    assert capsys.readouterr().out == f"{BASE:016x}-{BASE + 2 * PAGE:016x}      8 KiB  rw-p  /a file\n"


@pytest.mark.parametrize("arguments", [[], [""], ["one", "", "two words"], [str(n) for n in range(3000)]])
def test_argv(arguments: list[str], capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """What a program was started with, as /proc/PID/cmdline has it; and of any table of pointers."""
    command = [sys.executable, "-c", "print(flush=True); input()", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert main(["argv", str(child.pid)]) == 0
        expected = Path(f"/proc/{child.pid}/cmdline").read_bytes().replace(b"\0", b"\n")
        assert capfdbinary.readouterr().out == expected
        child.communicate(b"\n")


def test_a_reader_that_goes_away(memories: list[str]) -> None:
    """As in a pipe to head: no traceback."""
    command = f"{sys.executable} -m usermem maps {memories[0]} | true"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
