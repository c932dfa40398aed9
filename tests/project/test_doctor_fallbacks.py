"""Hosts that lack something: what is used instead, or what says that it is missing. Each is forced here."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator

import pytest

from hostarch import mman
from safemem import atomics, safecopy
from usermem import AddressSpace
from usermem.doctor import doctor
from usermem.mm import arena, faulting

PAGE = mmap.PAGESIZE
RW = mman.PROT_READ | mman.PROT_WRITE
PRIVATE = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS
SHARED = mman.MAP_SHARED | mman.MAP_ANONYMOUS


@pytest.fixture
def no_safecopy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process_vm_readv, as on other systems than Linux and in some sandboxes."""

    def refuse(name: str) -> object:
        raise OSError(errno.ENOSYS, name)

    monkeypatch.setattr(safecopy, "_process_vm", refuse)
    faulting.can_map.cache_clear()
    yield
    monkeypatch.undo()
    faulting.can_map.cache_clear()


@pytest.mark.usefixtures("no_safecopy")
def test_without_safecopy(tmp_path: object) -> None:
    """Files cannot be mapped, and it says why; the rest works, and doctor tells."""
    fd = os.open(__file__, os.O_RDONLY)
    with AddressSpace() as space:
        with pytest.raises(OSError, match="cannot copy memory that may fault") as caught:
            space.mmap(0, PAGE, mman.PROT_READ, mman.MAP_PRIVATE, fd, 0)
        assert caught.value.errno == errno.ENODEV
        addr = space.mmap(0, PAGE, RW, PRIVATE)
        assert space.copy_out(addr, b"works") == 5
    os.close(fd)
    assert "cannot be copied" in doctor()


@pytest.mark.parametrize("flags", [PRIVATE, SHARED])
def test_without_madvise(flags: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where MADV_DONTNEED does not zero, memory that is given back is zeroed by hand."""
    monkeypatch.setattr(arena, "_MADV_ZEROES", False)
    with AddressSpace() as space:
        for _ in range(3):
            addr = space.mmap(0, 8 * PAGE, RW, flags)
            assert space.read_bytes(addr, 8 * PAGE) == bytes(8 * PAGE)
            space.copy_out(addr, b"x" * 8 * PAGE)
            if flags == PRIVATE:
                space.madvise(addr, PAGE, mman.MADV_DONTNEED)
                assert space.read_bytes(addr, PAGE + 1) == bytes(PAGE) + b"x"
            space.munmap(addr, 8 * PAGE)


def test_without_mapping_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose mmap knows no flags, and which has no memory files (Windows): plain anonymous memory."""

    class Plain(mmap.mmap):
        def __new__(cls, fileno: int, length: int) -> Plain:
            return super().__new__(cls, fileno, length)

    monkeypatch.setattr("usermem.mm.backing.shared_memory.memory_file", lambda: None)
    for name in ("MAP_PRIVATE", "MAP_SHARED"):
        monkeypatch.delattr(mmap, name)
    monkeypatch.setattr(mmap, "mmap", Plain)
    monkeypatch.setattr(arena, "_FIRST_CHUNK", 1 << 22)
    monkeypatch.setattr(arena, "_MADV_ZEROES", False)
    with AddressSpace() as space:
        for flags in (PRIVATE, SHARED):
            addr = space.mmap(0, 2 * PAGE, RW, flags)
            assert space.read_bytes(addr, 2 * PAGE) == bytes(2 * PAGE)
            assert space.copy_out(addr + 10, b"plain") == 5
            assert space.read_bytes(addr + 10, 5) == b"plain"


def test_the_report_names_each_tier() -> None:
    """A line for each, with the reason."""
    report = doctor()
    for name in ("python", "atomics", "safecopy", "files", "datagrams", "segments", "AEAD"):
        assert any(line.startswith(name) for line in report.splitlines())
    assert atomics.reason() in report
