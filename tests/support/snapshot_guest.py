"""An address space beside its model, with aliases of its memory that are kept as an emulator would keep them."""

from __future__ import annotations

import ctypes

import pytest
from attrs import define, field

from hostarch import AccessType
from snapshot_model import PAGE, Moment, Page, Space
from usermem import AddressSpace, ChangeKind, FaultError, FaultReason
from usermem.mm.host_runs import GuestRun
from usermem.mm.vma import locked_bytes


@define(eq=False)
class Guest:
    """An address space, its model, and the aliases of its pages."""

    space: AddressSpace
    model: Space
    aliases: dict[int, tuple[int, GuestRun]] = field(factory=dict)
    tracked: Moment | None = None

    def __attrs_post_init__(self) -> None:
        self.space.on_change = self.changed

    def changed(self, start: int, end: int, kind: ChangeKind) -> None:
        """Drop the aliases that may be wrong now."""
        if kind is not ChangeKind.PROTECT:
            for number in [each for each in self.aliases if start < (each + 1) * PAGE and each * PAGE < end]:
                del self.aliases[number]

    def look(self) -> None:
        """Alias all that can be aliased. What is aliased already has not moved."""
        for number in self.model.pages:
            try:
                runs = self.space.host_runs(number * PAGE, (number + 1) * PAGE)
            except ValueError:
                continue  # memory of a file
            for run in runs:
                if number in self.aliases:
                    assert self.aliases[number][0] == run.address
                self.aliases[number] = run.address, run

    def check(self, *, contents: bool) -> None:
        """Compare all there is."""
        self.space._check()
        assert self.rows() == {number: expected_row(number, page, self.model) for number, page in self.pages()}
        assert sum(map(locked_bytes, self.space.mappings())) == PAGE * sum(page.locked for _, page in self.pages())
        for number, (address, _) in self.aliases.items():
            page = self.model.pages[number]
            assert not page.guard
            assert ctypes.string_at(address, PAGE) == page.content, f"the alias of {number:#x}"
        for number, page in self.pages() if contents else ():
            if page.guard:
                with pytest.raises(FaultError) as caught:
                    self.space.read_bytes(number * PAGE, 1, ignore_permissions=True)
                assert caught.value.reason is FaultReason.GUARD
            else:
                assert self.space.read_bytes(number * PAGE, PAGE, ignore_permissions=True) == page.content, (
                    f"{number:#x}"
                )

    def pages(self) -> list[tuple[int, Page]]:
        """The model's, in order."""
        return sorted(self.model.pages.items())

    def rows(self) -> dict[int, tuple[str, int, str]]:
        """What maps says of each page: its rights, its offset, its name; and what its inode is, if that is known."""
        found = {}
        for line in self.space.maps().splitlines():
            bounds, rights, offset, _, inode, *name = line.split(maxsplit=5)
            start, end = (int(bound, 16) // PAGE for bound in bounds.split("-"))
            for number in range(start, end):
                model = self.model.pages.get(number)
                source = model.source if model is not None else None
                if source is not None and source.inode is not None:
                    assert int(inode) == source.inode
                place = int(offset, 16) // PAGE + number - start if source is not None else 0
                found[number] = (rights, place, name[0].strip() if name else "")
        return found


def expected_row(number: int, page: Page, space: Space) -> tuple[str, int, str]:
    """What maps is to say of a page."""
    rights = f"{AccessType(page.prot)}{'s' if page.shared else 'p'}"
    heap = range(space.brk_start // PAGE, -(-space.brk // PAGE))
    return rights, page.number, "[heap]" if page.anonymous and number in heap else page.name
