"""Objects that are mapped: their bytes where they should be, up to the end of their last page, as they are now."""

from __future__ import annotations

import pytest

from edge_layouts import BASE, FIXED, PAGE, RW, GrowingObject, pattern
from hostarch import mman
from usermem import AddressSpace, FaultError, FaultReason


def test_an_object_shows_its_bytes() -> None:
    """A mapping at an offset reads the object's bytes; the rest of its last page is zero, and can be written."""
    data = pattern(3 * PAGE + 10)
    space = AddressSpace()
    space.map_object(BASE, 9 * PAGE, RW, FIXED, GrowingObject(data, len(data)), PAGE)
    assert space.read_bytes(BASE, 2 * PAGE + 10) == data[PAGE:]
    assert space.read_bytes(BASE + 2 * PAGE + 10, PAGE - 10) == bytes(PAGE - 10)
    assert space.copy_out(BASE + 3 * PAGE - 4, b"tail") == 4
    with pytest.raises(FaultError) as caught:
        space.read_bytes(BASE + 3 * PAGE - 4, 8)
    fault = caught.value
    assert (fault.partial, fault.address, fault.reason) == (b"tail", BASE + 3 * PAGE, FaultReason.BEYOND_FILE)
    assert data == pattern(3 * PAGE + 10)
    with pytest.raises(FaultError) as caught:
        space.read_bytes(BASE + 3 * PAGE, 1, ignore_permissions=True)
    assert caught.value.reason is FaultReason.BEYOND_FILE


def test_an_empty_object_has_no_page() -> None:
    """Nothing of a mapping over an object without bytes can be accessed, nor what lies beyond its end."""
    space = AddressSpace()
    space.map_object(BASE, PAGE, RW, FIXED, GrowingObject(b"", 0))
    space.map_object(BASE + PAGE, PAGE, RW, FIXED, GrowingObject(b"short", 5), 4 * PAGE)
    for addr in (BASE, BASE + PAGE):
        with pytest.raises(FaultError) as caught:
            space.copy_out(addr, b"x")
        assert (caught.value.reason, caught.value.transferred) == (FaultReason.BEYOND_FILE, 0)


def test_an_object_keeps_its_place_when_it_is_cut() -> None:
    """Pages of an object that are unmapped, protected or mapped over leave the others with their bytes."""
    data = pattern(6 * PAGE)
    space = AddressSpace()
    space.map_object(BASE, 6 * PAGE, RW, FIXED, GrowingObject(data, len(data)))
    space.munmap(BASE + PAGE, PAGE)
    space.mprotect(BASE + 3 * PAGE, PAGE, mman.PROT_READ)
    space.mmap(BASE + 4 * PAGE, PAGE, RW, FIXED)
    for page in (5, 3, 2, 0):
        assert space.read_bytes(BASE + page * PAGE, PAGE) == data[page * PAGE : (page + 1) * PAGE]
    assert space.read_bytes(BASE + 4 * PAGE, PAGE) == bytes(PAGE)
    assert space.read_bytes(BASE + PAGE - 1, 1) == data[PAGE - 1 : PAGE]
    space._check()


def test_an_object_that_grows() -> None:
    """Its new pages hold the object's bytes: they are read when first touched, not with their neighbours."""
    data = pattern(2 * PAGE)
    mapped = GrowingObject(data[:100], 100)
    space = AddressSpace()
    space.map_object(BASE, 2 * PAGE, mman.PROT_READ, FIXED, mapped)
    assert space.read_bytes(BASE, 100) == data[:100]
    mapped.data, mapped.length = data, len(data)
    assert space.read_bytes(BASE + PAGE, PAGE) == data[PAGE:]


def test_an_object_that_shrinks() -> None:
    """A page that lies wholly beyond the object's size now cannot be accessed, though it could before."""
    mapped = GrowingObject(pattern(2 * PAGE), 2 * PAGE)
    space = AddressSpace()
    space.map_object(BASE, 2 * PAGE, mman.PROT_READ, FIXED, mapped)
    assert space.read_bytes(BASE + PAGE, 1) == pattern(PAGE + 1)[PAGE:]
    mapped.length = PAGE
    with pytest.raises(FaultError) as caught:
        space.read_bytes(BASE + PAGE, 1)
    assert caught.value.reason is FaultReason.BEYOND_FILE


class BrokenObject(GrowingObject):
    """A mapped object that cannot be read while ``error`` is set."""

    error: Exception | None = None

    def read_at(self, offset: int, dst: memoryview) -> int:
        """See MappedObject."""
        if self.error is not None:
            raise self.error
        return super().read_at(offset, dst)


def test_an_object_that_cannot_be_read() -> None:
    """Its own error comes out before a byte has moved, and the access works once the object does."""
    broken = BrokenObject(pattern(2 * PAGE), 2 * PAGE)
    broken.error = OSError(5, "Input/output error")
    space = AddressSpace()
    space.mmap(BASE, PAGE, RW, FIXED)
    space.copy_out(BASE, pattern(PAGE))
    space.map_object(BASE + PAGE, PAGE, RW, FIXED, broken)
    dst = bytearray(b"\xee" * 8)
    with pytest.raises(OSError, match="Input/output") as caught:
        space.copy_in(BASE + PAGE - 4, dst)
    assert caught.value is broken.error
    assert dst == b"\xee" * 8
    broken.error = None
    assert space.read_bytes(BASE + PAGE - 4, 8) == pattern(PAGE)[-4:] + pattern(4)
