"""open_core: cores by hand, of the kernel and of gcore; truncated, damaged and hostile ones."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

import hostarch
from core_writer import PAGE, CoreFile, Load
from hostarch import Arch
from other_process import OtherProcess
from usermem import BytesIO, FaultError, copy_pointer_in, copy_string_in, render, write_fd
from usermem.memories import CoreIO, MappedRange, ProcessIO, open_core
from usermem.memories.arguments import program_arguments

BASE = 0x40_0000
CONTENT = bytes(1 + i * 7 % 251 for i in range(2 * PAGE))
CORE = CoreFile(
    [Load(BASE, 5, b"", 2 * PAGE), Load(BASE + 2 * PAGE, 6, CONTENT), Load(BASE + 8 * PAGE, 4, CONTENT[:PAGE])],
    [(BASE, BASE + 2 * PAGE, 3, "/bin/program"), (BASE + 8 * PAGE, BASE + 9 * PAGE, 0, "/lib/a name")],
)


def test_bytes_names_and_faults(tmp_path: Path) -> None:
    """Bytes are where they were; what was not dumped is beyond-file, what is written a permission fault."""
    with open_core(CORE.write(tmp_path / "core")) as core:
        assert core.read_bytes(BASE + 2 * PAGE + 3, 20) == CONTENT[3:23]
        assert core.mappings() == [
            MappedRange(BASE, BASE + 2 * PAGE, 5, offset=3 * PAGE, label="/bin/program"),
            MappedRange(BASE + 2 * PAGE, BASE + 4 * PAGE, 3),
            MappedRange(BASE + 8 * PAGE, BASE + 9 * PAGE, 1, label="/lib/a name"),
        ]
        assert "r-xp  /bin/program +0x3000" in render(core)
        for addr, n, why in ((BASE + 9, 0, "beyond-file"), (BASE + 3 * PAGE, PAGE, "unmapped")):
            with pytest.raises(FaultError) as caught:
                core.copy_in(addr, bytearray(9 * PAGE))
            assert (caught.value.transferred, caught.value.reason.value) == (n, why)
        with pytest.raises(FaultError) as caught:
            core.copy_out(BASE + 2 * PAGE, b"x", ignore_permissions=True)
        assert caught.value.reason.value == "permission"
        blocks = core.resolve(BASE + 2 * PAGE, 16, hostarch.READ)[0]
        with (tmp_path / "out").open("wb", buffering=0) as out:
            assert write_fd(core, out.fileno(), BASE + 2 * PAGE, 2 * PAGE) == 2 * PAGE
        assert (tmp_path / "out").read_bytes() == CONTENT
    with pytest.raises(ValueError, match="closed"):
        core.read_bytes(BASE, 1)
    assert b"".join(map(bytes, (block.tobytes() for block in blocks))) == CONTENT[:16]  # they keep the file mapped


@pytest.mark.parametrize(
    ("machine", "wide", "order", "arch"),
    [
        (62, True, "<", hostarch.AMD64),
        (183, True, "<", hostarch.ARM64),
        (243, True, "<", hostarch.RISCV64),
        (22, True, ">", hostarch.S390X),
        (21, True, ">", hostarch.PPC64),
        (21, True, "<", evolve(hostarch.PPC64, byte_order="little")),
        (3, False, "<", hostarch.I386),
        (40, False, "<", hostarch.ARM),
        (8, False, ">", hostarch.MIPS),
        (8, False, "<", hostarch.MIPSEL),
    ],
)
@pytest.mark.parametrize("many", [False, True])
def test_machines(machine: int, wide: bool, order: str, arch: Arch, many: bool, tmp_path: Path) -> None:
    """Classes, byte orders and machines; and the way to say that there are 65,535 headers and more."""
    core = evolve(CORE, machine=machine, wide=wide, order=order, many=many)
    with open_core(core.write(tmp_path / "core")) as io:
        assert io.arch == arch
        assert io.read_bytes(BASE + 8 * PAGE, PAGE) == CONTENT[:PAGE]
        assert [m.label for m in io.mappings()] == ["/bin/program", "", "/lib/a name"]
        n = arch.pointer_size
        assert copy_pointer_in(io, BASE + 2 * PAGE) == int.from_bytes(CONTENT[:n], arch.byte_order)


def test_an_unknown_machine_needs_an_arch(tmp_path: Path) -> None:
    """The error says so."""
    path = evolve(CORE, machine=9999).write(tmp_path / "core")
    with pytest.raises(OSError, match=r"machine .9999, 64 bits. is not known: give arch"):
        open_core(path)
    with open_core(path, arch=hostarch.AMD64) as core:
        assert core.read_bytes(BASE + 2 * PAGE, 3) == CONTENT[:3]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_truncated_core_is_a_fault(at_once: bool, tmp_path: Path) -> None:
    """Whether it was too short or is truncated while it is open: bytes before the end are there, no signal comes."""
    path = CORE.write(tmp_path / "core")
    size = path.stat().st_size - 2 * PAGE + (100 if at_once else 0)
    if at_once:
        os.truncate(path, size)
    with open_core(path) as core:
        os.truncate(path, size)
        end = BASE + 3 * PAGE + (100 if at_once else 0)
        with pytest.raises(FaultError) as caught:
            core.read_bytes(BASE + 2 * PAGE, 2 * PAGE)
        assert (caught.value.address, caught.value.reason.value) == (end, "beyond-file")
        assert caught.value.partial == CONTENT[: end - BASE - 2 * PAGE]
        with pytest.raises(FaultError):
            core.read_bytes(BASE + 8 * PAGE, 9)


def note_file(count: int, rest: bytes) -> bytes:
    """Notes with a table of files that says ``count``."""
    return CORE.note(0x46494C45, CORE.pack("NN", count, PAGE) + rest)


@pytest.mark.parametrize(
    ("core", "message"),
    [
        (evolve(CORE, kind=2), "but no core"),
        (evolve(CORE, header={8: 55}), "program headers have 55 bytes"),
        (evolve(CORE, header={9: 60000}), "ends before the end of its program headers"),
        (evolve(CORE, header={4: 1 << 63}), "ends before the end of its program headers"),
        (evolve(CORE, many=True, header={5: 1 << 62}), "ends before its first section header"),
        (evolve(CORE, many=True, header={10: 3}), "section headers have 3 bytes"),
        (evolve(CORE, notes=b"\1\0\0\0"), "a note is cut short"),
        (evolve(CORE, notes=bytes(64)), "no name, or is cut short"),
        (evolve(CORE, notes=CORE.pack("III", 5, 1 << 31, 1) + b"CORE\0\0\0\0"), "no name, or is cut short"),
        (evolve(CORE, notes=note_file(1 << 60, b"")), "too few for"),
        (evolve(CORE, notes=note_file(1, CORE.pack("NNN", 1, 2, 3))), "0 names for 1"),
        (evolve(CORE, notes=CORE.note(0x46494C45, b"abc")), "table of mapped files is cut short"),
        (CoreFile([Load(BASE, 4, CONTENT), Load(BASE + PAGE, 4, CONTENT)]), "segments overlap at 0x401000"),
        (CoreFile([Load(BASE, 4, CONTENT, PAGE)]), "more bytes in the file than in memory"),
        (CoreFile([Load((1 << 64) - PAGE, 4, CONTENT)]), "leaves the address space"),
        (CoreFile([Load((1 << 32) - PAGE, 4, CONTENT)], wide=False, machine=3), "leaves the address space"),
    ],
)
def test_hostile_cores(core: CoreFile, message: str, tmp_path: Path) -> None:
    """ENOEXEC, with what is wrong and the file's name."""
    path = core.write(tmp_path / "core")
    with pytest.raises(OSError, match=message) as caught:
        open_core(path)
    assert (caught.value.errno, caught.value.filename) == (8, path)


def test_no_core_at_all(tmp_path: Path) -> None:
    """Other files, no files, folders and pipes; a note segment too large to read, in a sparse file."""
    for content in (b"", b"\x7fELF", b"#!/bin/sh\n" * 20, Path(sys.executable).read_bytes()[:4096]):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(OSError, match=r"ELF|ends before"):
            open_core(tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        open_core(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(OSError, match="no regular file"):
            open_core(path)
    data = bytearray(CORE.bytes())
    data[64 + 32 : 64 + 40] = (1 << 40).to_bytes(8, "little")  # p_filesz of the notes
    (tmp_path / "sparse").write_bytes(data)
    os.truncate(tmp_path / "sparse", 1 << 41)
    with pytest.raises(OSError, match="at most 67108864 are read"):
        open_core(tmp_path / "sparse")


@given(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=4), st.integers(0, 60_000))
def test_any_damage_is_an_error_or_a_memory(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], length: int
) -> None:
    """Whatever bytes of the headers are changed and wherever the file ends: an OSError, or reads that are or fault."""
    data = bytearray(CORE.bytes())
    for at, value in changes:
        data[at] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data[:length])
    try:
        core = open_core(path)
    except OSError as exc:
        assert exc.errno in (8, 12)
        return
    with core:
        for mapping in core.mappings():
            try:
                core.read_bytes(mapping.start, min(mapping.end - mapping.start, 64))
            except FaultError:
                continue


def test_an_auxiliary_vector_of_any_size() -> None:
    """A core may have one of 64 MiB: it costs no multiple of that, and shows no arguments."""
    auxv = bytes(1 << 22)
    tracemalloc.start()
    try:
        with pytest.raises(OSError, match="arguments are not where"):
            program_arguments(BytesIO(bytearray(PAGE)), auxv)
        assert tracemalloc.get_traced_memory()[1] < len(auxv)
    finally:
        tracemalloc.stop()


_CRASHING = """
import ctypes, os, sys
kept = ctypes.create_string_buffer(b"kept in the core")
print(os.getpid(), ctypes.addressof(kept), flush=True)
os.abort()
"""


def check_real(core: CoreIO, addr: int, argv: list[str]) -> None:
    """A core of a Python process that had a string at addr."""
    assert copy_string_in(core, addr, 4096) == b"kept in the core"
    labels = {m.label for m in core.mappings()}
    assert any("libc" in label for label in labels)
    assert program_arguments(core, core.auxv) == [os.fsencode(arg) for arg in argv]


def test_a_core_of_the_kernels(tmp_path: Path) -> None:
    """A child that aborts."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if not pattern or pattern[0] in "|/":
        pytest.skip(f"core_pattern {pattern!r} does not put cores into the working directory")
    argv = [sys.executable, "-c", _CRASHING, "an argument", ""]
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    if hard == 0:
        pytest.skip("RLIMIT_CORE forbids cores")
    shell = ["sh", "-c", 'ulimit -c "$0"; exec "$@"', "unlimited" if hard < 0 else str(hard // 512), *argv]
    done = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGABRT, done.stderr
    found = [path for path in tmp_path.iterdir() if path.name.startswith("core")]
    if not found:
        pytest.skip(f"core_pattern {pattern!r} made no core")
    _, addr = map(int, done.stdout.split())
    with open_core(found[0]) as core:
        check_real(core, addr, argv)


@pytest.mark.skipif(shutil.which("gcore") is None, reason="needs gcore, of gdb")
def test_a_core_of_gcore(tmp_path: Path) -> None:
    """It has what the process has: every byte of what was dumped that does not change."""
    with OtherProcess() as other:
        other.run("globals().update(kept=ctypes.create_string_buffer(b'kept in the core'))")
        addr = other.run("ctypes.addressof(kept)")
        done = subprocess.run(
            ["gcore", "-o", "core", str(other.pid)], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        path = tmp_path / f"core.{other.pid}"
        if not path.exists():
            pytest.skip(f"gcore made no core: {done.stderr[-300:]}")
        argv = Path(f"/proc/{other.pid}/cmdline").read_bytes().split(b"\0")[:-1]
        with open_core(path) as core, ProcessIO(other.pid) as process:
            check_real(core, addr, [os.fsdecode(arg) for arg in argv])
            theirs = {m.start: m for m in process.mappings()}
            heap = next(m for m in process.mappings() if m.label == "[heap]")
            assert any(m.start == heap.start for m in core.mappings())
            same = [m for m in core.mappings() if m.start in theirs and m.label]
            assert same
            assert all(theirs[m.start].label.startswith(m.label) for m in same)
