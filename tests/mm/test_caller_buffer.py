"""Attached buffers that map a file, or may do so: it is truncated afterwards, and no signal comes."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from hostarch import READ, AddrRange, AddrRangeSeq
from usermem import AddressSpace
from usermem.mm.backing import caller_buffer
from usermem.mm.faulting import can_map

PAGE = mmap.PAGESIZE

# In a process of its own, which a signal ends: "proc" is whether the host tells what is mapped.
TRUNCATE = """
import mmap, os, sys
from hostarch import AddrRange, AddrRangeSeq
from safemem import FDReader
from usermem import AddressSpace, FaultError, copy_string_in
from usermem.mm.backing import caller_buffer

path, proc = sys.argv[1:]
if proc == "no":
    def mappings(start, end):
        raise FileNotFoundError
    caller_buffer.mappings = mappings
fd = os.open(path, os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 8192)
memory = mmap.mmap(fd, 8192)
for buffer in (memory, memoryview(memory), memoryview(memory)[4096:], memoryview(memory).cast("I")):
    os.ftruncate(fd, 8192)
    space = AddressSpace()
    at = space.attach(0, buffer)
    assert space.copy_out(at, b"hello") == 5
    assert bytes(memoryview(buffer).cast("B")[:5]) == b"hello"
    os.ftruncate(fd, 0)
    for use in (
        lambda: space.read_bytes(at, 5),
        lambda: space.copy_out(at, b"hello"),
        lambda: space.swap_uint32(at, 5),
        lambda: copy_string_in(space, at, 50),
        lambda: space.copy_out_from(AddrRangeSeq.of(AddrRange(at, at + 10)), FDReader(os.open("/dev/zero", 0))),
    ):
        try:
            use()
        except FaultError as fault:
            assert fault.address == at
        else:
            raise AssertionError
print("alive")
"""


def refuse(start: int, end: int) -> NoReturn:
    """A host that does not tell what is mapped."""
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def run_of(space: AddressSpace, buffer: Any) -> Any:
    """The host memory behind an attached buffer."""
    at = space.attach(0, buffer)
    assert space.copy_out(at, b"ours") == 4
    pma = space._map.tables.pmas.find(at)
    assert pma is not None
    return pma.run


@pytest.fixture
def space() -> Iterator[AddressSpace]:
    """An address space."""
    with AddressSpace() as space:
        yield space


@pytest.mark.skipif(not can_map(), reason="this host cannot copy memory that may fault")
@pytest.mark.parametrize("proc", ["yes", "no"])
def test_a_file_that_is_truncated(tmp_path: Path, proc: str) -> None:
    """By every way in, whether the host says what is mapped or not."""
    code = [sys.executable, "-c", TRUNCATE, str(tmp_path / "file"), proc]
    done = subprocess.run(code, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("alive\n", 0), done.stderr


@pytest.mark.skipif(not can_map(), reason="this host cannot copy memory that may fault")
def test_what_cannot_be_known_is_copied_with_care(space: AddressSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    """But bytes of Python's own are known; and what is anonymous where the host tells."""
    memory = mmap.mmap(-1, PAGE)
    assert not run_of(space, memory).may_fault
    monkeypatch.setattr(caller_buffer, "mappings", refuse)
    assert run_of(space, memory).may_fault
    assert memory[:4] == b"ours"
    assert not run_of(space, bytearray(PAGE)).may_fault
    assert not run_of(space, memoryview(bytearray(2 * PAGE))[PAGE:]).may_fault
    file, anonymous = ["7f0-7f1", "rw-p", "0", "fe:01", "7"], ["7f1-7f2", "rw-p", "0", "00:00", "0"]
    for lines in ([], [file, anonymous], [anonymous, file]):
        monkeypatch.setattr(caller_buffer, "mappings", lambda start, end, lines=lines: iter(lines))
        assert run_of(space, memory).may_fault


@pytest.mark.skipif(not can_map(), reason="this host cannot copy memory that may fault")
def test_it_is_exported_as_long_as_a_block_refers_to_it(space: AddressSpace, tmp_path: Path) -> None:
    """A mapping of a file, which has no view: it cannot be closed until the last block of it is gone."""
    (tmp_path / "file").write_bytes(b"f" * PAGE)
    with (tmp_path / "file").open("r+b") as file:
        memory = mmap.mmap(file.fileno(), PAGE)
    at = space.attach(0, memory)
    blocks = space.blocks(AddrRangeSeq.of(AddrRange(at, at + 4)), READ)
    space.munmap(at, PAGE)
    gc.collect()
    with pytest.raises(BufferError):
        memory.close()
    assert blocks.tobytes() == b"ffff"
    del blocks
    memory.close()


def test_it_is_refused_where_there_is_no_care(space: AddressSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that neither tells nor can copy memory that may fault."""
    monkeypatch.setattr(caller_buffer, "mappings", refuse)
    monkeypatch.setattr(caller_buffer, "can_map", bool)
    with pytest.raises(OSError, match="may be a mapping of a file") as caught:
        space.attach(0, mmap.mmap(-1, PAGE))
    assert caught.value.errno == errno.ENODEV
    assert not space.maps()
    assert not run_of(space, bytearray(PAGE)).may_fault


@pytest.mark.skipif(not hasattr(os, "memfd_create") or not can_map(), reason="this host has no memory files")
@pytest.mark.parametrize("name", ["dev/zero (deleted)", "SYSV00000000", "[anon_shmem:x]"])
def test_a_memory_file_has_a_name_of_its_makers(space: AddressSpace, name: str) -> None:
    """Whatever it is called, it can be truncated."""
    fd = os.memfd_create(name)
    os.ftruncate(fd, PAGE)
    memory = mmap.mmap(fd, PAGE)
    os.close(fd)
    assert run_of(space, memory).may_fault


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("7f0-7f1 rw-s 00000000 00:01 1033 /dev/zero (deleted)", False),
        ("7f0-7f1 rw-s 00000000 00:01 5 /SYSV00000000 (deleted)", False),
        ("7f0-7f1 rw-s 00000000 00:01 5 [anon_shmem:name]", False),
        ("7f0-7f1 rw-p 00000000 00:00 0", False),
        ("7f0-7f1 rw-p 00000000 00:00 0 [heap]", False),
        ("7f0-7f1 rw-s 00000000 00:06 7 /dev/zero (deleted)", True),
        ("7f0-7f1 rw-s 00000000 fe:01 7 /SYSV1", True),
        ("7f0-7f1 rw-s 00000000 00:01 7 /memfd:x (deleted)", True),
        ("7f0-7f1 rw-p 00000000 fe:01 7", True),
    ],
)
def test_which_lines_are_files(line: str, expected: bool) -> None:
    """Only the kernel's own mount has names that nobody else can give."""
    assert caller_buffer._is_file(line.split(maxsplit=5)) is expected
