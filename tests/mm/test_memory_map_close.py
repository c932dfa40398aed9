"""A space that is closed is empty for good, whatever other threads do meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from edge_layouts import ANON, BASE, FIXED, PAGE, RW
from hostarch import READ, AccessType, mman
from switching import quick_switches
from usermem import AddressSpace, FaultError

CALLS: dict[str, Callable[[AddressSpace], object]] = {
    "mmap": lambda space: space.copy_out(space.mmap(0, PAGE, RW, ANON), b"x"),
    "mmap over it": lambda space: space.mmap(BASE, 4 * PAGE, RW, FIXED),
    "munmap": lambda space: space.munmap(BASE, PAGE),
    "mprotect": lambda space: space.mprotect(BASE, PAGE, RW),
    "mremap": lambda space: space.mremap(BASE, PAGE, 8 * PAGE, mman.MREMAP_MAYMOVE),
    "brk": lambda space: space.brk(BASE + 0x10_0000),
    "first touch": lambda space: space.read_bytes(BASE + PAGE, 1),
    "growth": lambda space: space.copy_out(BASE + 0x8000_0000 - 8, b"x"),
}


@pytest.fixture(autouse=True)
def often_switched() -> Iterator[None]:
    """Threads take turns all the time."""
    with quick_switches(1e-6):
        yield


@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_mapped_after_close(name: str) -> None:
    """A thread that maps while another closes: either came first, and then there are no mappings and no memory."""
    refused = 0
    for _ in range(60):
        space = AddressSpace()
        space.mmap(BASE, 4 * PAGE, RW, FIXED)
        space.mmap(BASE + 0x8000_0000, PAGE, RW, FIXED | mman.MAP_GROWSDOWN)
        space.set_brk(BASE + 0x10_0000)
        go = threading.Event()

        def run(space: AddressSpace = space, go: threading.Event = go) -> None:
            nonlocal refused
            go.wait()
            try:
                for _ in range(5):
                    CALLS[name](space)
            except (ValueError, FaultError, OSError):
                refused += 1

        thread = threading.Thread(target=run)
        thread.start()
        go.set()
        space.close()
        thread.join()
        assert space.maps() == ""
        assert not space._map.tables.pmas
    assert refused


def test_a_hook_that_closes() -> None:
    """The access that asked it finds the space closed."""
    space = AddressSpace()

    def on_fault(addr: int, access: AccessType) -> bool:
        space.close()
        return True

    space.on_fault = on_fault
    with pytest.raises((ValueError, FaultError)):
        space.read_bytes(BASE, 8)
    assert space.maps() == ""
    with pytest.raises(ValueError, match="closed"):
        space.resolve(BASE, 8, READ)


def test_close_beside_close() -> None:
    """Both return; a listener that raises loses no error of an object's."""
    for _ in range(200):
        space = AddressSpace()
        space.mmap(0, PAGE, RW, ANON)
        failed: list[BaseException] = []

        def close(space: AddressSpace = space, failed: list[BaseException] = failed) -> None:
            try:
                space.close()
            except BaseException as exc:
                failed.append(exc)

        threads = [threading.Thread(target=close) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
