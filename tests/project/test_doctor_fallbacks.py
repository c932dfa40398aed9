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
from usermem.mm import arena, faulting, host_calls, host_pages, image

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
    assert "cannot be copied" in line("safecopy")


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


def line(name: str) -> str:
    """The line of the report that begins with a name."""
    (found,) = [found for found in doctor(width=10_000).splitlines() if found.startswith(name)]
    return found


def a_restore_is_right() -> None:
    """Pages that were written, in pieces, are what they were; and only they are dirty."""
    with AddressSpace() as space:
        addr = space.mmap(0, 16 * PAGE, RW, PRIVATE)
        space.copy_out(addr, b"before.." * 2 * PAGE)
        for count in (1, 6):
            with space.snapshot() as snapshot:
                then = space.read_bytes(addr, 16 * PAGE)
                for page in range(addr, addr + 2 * count * PAGE, 2 * PAGE):
                    space.copy_out(page, b"after")
                assert space.dirty_pages(snapshot).num_bytes == count * PAGE
                space.restore(snapshot)
                assert space.read_bytes(addr, 16 * PAGE) == then


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A host that is found out anew."""
    for name in ("scans", "advises_many", "others", "looks_left", "faults"):
        monkeypatch.setattr(host_pages._Host, name, getattr(host_pages._Host, name))
    image.maps_images.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    image.maps_images.cache_clear()


@pytest.mark.skipif(not host_pages._Host.scans, reason="this host has no pagemap")
def test_ways_to_tell_dirty_pages(host: pytest.MonkeyPatch) -> None:
    """PAGEMAP_SCAN, the words of pagemap, or bytes that are compared."""
    assert host_pages.way()[0] in line("dirty")
    a_restore_is_right()
    host.setattr(host_pages._Host, "scans", False)
    assert "no PAGEMAP_SCAN" in line("dirty")
    a_restore_is_right()
    host.setattr(host_pages, "_PAGEMAP", "/nowhere/pagemap")
    assert "comparing" in line("dirty")
    a_restore_is_right()


def test_without_process_madvise(host: pytest.MonkeyPatch) -> None:
    """Ranges are given up one by one."""
    host.setattr(host_pages, "_MANY", -1 << 40)  # no guest is too small to be looked at
    host.setattr(host_pages._Host, "looks_left", 1000)
    assert "process_madvise" in line("restore")
    a_restore_is_right()
    host.setattr(host_calls, "process_madvise", lambda *args: -1)
    assert "Linux 6.13" in line("restore")
    a_restore_is_right()


@pytest.mark.parametrize(
    ("lacks", "why"), [("memfd_create", "has no memory files"), ("drop", "does not bring a mapped file's pages back")]
)
def test_without_images_that_are_mapped(lacks: str, why: str, host: pytest.MonkeyPatch) -> None:
    """Where there are no memory files, or MADV_DONTNEED does nothing: pages are copied, and doctor tells why."""
    if lacks == "drop":
        host.setattr(host_calls, "drop", lambda addresses, lengths: None)
    else:
        host.delattr(os, "memfd_create")
        host.setattr("usermem.mm.memory_file._current", None)
    assert "copied" in line("snapshots")
    assert why in line("snapshots")
    assert line("restore").split()[1] == "none"
    a_restore_is_right()


def test_the_report_names_each_tier() -> None:
    """A line for each, with the reason."""
    report = doctor(width=10_000)
    for name in (
        "python",
        "atomics",
        "safecopy",
        "files",
        "dirty",
        "snapshots",
        "restore",
        "datagrams",
        "segments",
        "AEAD",
    ):
        assert any(line.startswith(name) for line in report.splitlines())
    assert atomics.reason() in report
