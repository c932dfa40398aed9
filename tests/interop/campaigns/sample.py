"""What the campaigns here look for: a simulator's memory that copies page by page, as emulators do.

It has a bug: where a later page faults, the fault does not count the pages before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st

from hostarch import AMD64, READ_WRITE
from usermem import AddressSpace, Snapshot
from usermem.testing import Layout, Mapping
from usermem.testing import strategies as guests
from usermem.testing.operations import KINDS, Operation, outcome

LAYOUT = Layout(AMD64, (Mapping(0x1_0000, 0x2000, READ_WRITE), Mapping(0x1_4000, 0x1000, READ_WRITE)))
OPERATIONS = st.lists(guests.operations(near=LAYOUT.edges, kinds=KINDS["copies"]), max_size=3)
PAGE = AMD64.page_size


class PagedMemory:
    """An IO over a space. The calls that it does not have are the space's."""

    def __init__(self, space: AddressSpace) -> None:
        self._space = space

    def __getattr__(self, name: str) -> Any:
        return getattr(self._space, name)

    def copy_in(self, addr: int, dst: bytearray, *, ignore_permissions: bool = False) -> int:
        """Page by page."""
        done, view = 0, memoryview(dst)
        while True:
            n = min(len(view) - done, PAGE - (addr + done) % PAGE)
            done += self._space.copy_in(addr + done, view[done : done + n], ignore_permissions=ignore_permissions)
            if done == len(view):
                return done


def begin() -> Snapshot:
    """The guest that each example begins with."""
    with LAYOUT.address_space() as space:
        space.copy_out(LAYOUT.mappings[0].addr, b"the guest's bytes")
        return space.snapshot()


def check(guest: Snapshot, operations: Iterable[Operation]) -> None:
    """Run the operations on the simulator's memory and on a plain space. Raises AssertionError where they differ."""
    with guest.spawn() as space, guest.spawn() as plain:
        memory: Any = PagedMemory(space)
        for operation in operations:
            found, expected = outcome(operation, memory), outcome(operation, plain)
            assert found == expected, f"{operation} gave {found}, must give {expected}"
