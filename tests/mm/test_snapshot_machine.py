"""Snapshots, restore, fork and dirty pages of several address spaces, against dicts of pages (snapshot_model).

Any snapshot is restored in any order, starts spaces, is saved and loaded, and outlives its own, while all of them map
and write (:mod:`mapping_machine`). Host addresses and maps are then what they were.
"""

from __future__ import annotations

import mmap
import sys
from tempfile import TemporaryDirectory
from typing import ClassVar

import pytest
from attrs import define
from hypothesis import settings
from hypothesis.stateful import precondition, rule

from hostarch import AddrRangeSeq
from mapping_machine import MappingMachine, booleans, picks
from snapshot_guest import Guest
from snapshot_model import PAGE, Moment, different, moment, written
from usermem import Snapshot
from usermem.mm import host_pages, image, overlay, saved_state
from usermem.mm.backing import saved_bytes

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or mmap.PAGESIZE != PAGE, reason="maps files at offsets of 4 KiB pages"
)
MOST_SPACES, MOST_SNAPSHOTS = 4, 6


@define(eq=False)
class Kept:
    """A snapshot, its model, and what there was to see of the space when it was made."""

    snapshot: Snapshot
    moment: Moment
    guest: Guest | None  # None: its space is closed, or it was loaded
    maps: str
    aliases: dict[int, int]


class Snapshots(MappingMachine):
    """What is kept of the spaces beside them."""

    exact: ClassVar[bool] = True
    """Whether pages that were only read are not dirty."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Kept] = []
        self.directory = TemporaryDirectory()

    def teardown(self) -> None:
        """Close all."""
        super().teardown()
        for kept in self.kept:
            kept.snapshot.close()
        self.directory.cleanup()

    @precondition(lambda self: len(self.kept) < MOST_SNAPSHOTS)
    @rule(pick=picks)
    def snapshot(self, pick: int) -> None:
        """One more snapshot; what is aliased stays so."""
        guest = self.guest(pick)
        aliases = dict(guest.aliases)
        snapshot = guest.space.snapshot()
        assert guest.aliases == aliases
        self.keep(snapshot, moment(guest.model), guest)

    def keep(self, snapshot: Snapshot, moment: Moment, guest: Guest) -> None:
        """Remember a snapshot."""
        addresses = {number: address for number, (address, _) in guest.aliases.items()}
        self.kept.append(Kept(snapshot, moment, guest, guest.space.maps(), addresses))

    @precondition(lambda self: self.kept)
    @rule(pick=picks)
    def restore(self, pick: int) -> None:
        """Any snapshot, in any order. Host addresses are what they were then."""
        kept = self.kept[pick % len(self.kept)]
        guest = kept.guest
        if guest is None:
            other = self.guest(pick)
            with pytest.raises(ValueError, match="another address space"):
                other.space.restore(kept.snapshot)
            return
        guest.space.restore(kept.snapshot)
        kept.moment.restore()
        assert guest.space.maps() == kept.maps
        for number, address in kept.aliases.items():
            assert guest.space.host_runs(number * PAGE, (number + 1) * PAGE)[0].address == address
        assert guest.space.brk(0) == guest.model.brk

    @precondition(lambda self: self.kept and len(self.guests) < MOST_SPACES)
    @rule(pick=picks)
    def spawn(self, pick: int) -> None:
        """A new space from any snapshot."""
        kept = self.kept[pick % len(self.kept)]
        self.add(kept.snapshot.spawn(), kept.moment.spawned())

    @precondition(lambda self: self.kept)
    @rule(pick=picks, in_memory=booleans)
    def save_and_load(self, pick: int, in_memory: bool) -> None:
        """Any snapshot, into the file that was loaded last; the loaded one takes its place if there are many."""
        kept = self.kept[pick % len(self.kept)]
        path, pages = f"{self.directory.name}/a", kept.moment.space.pages.values()
        if any(page.shared and kept.moment.held(page) is None for page in pages):
            with pytest.raises(ValueError, match="which is not the space's"):
                kept.snapshot.save(path)
            return
        kept.snapshot.save(path)
        loaded = Kept(
            Snapshot.load(path, in_memory=in_memory),
            kept.moment.loaded(read_in=not image.maps_images()),
            *(None, kept.maps, {}),
        )
        self.check_between(loaded.snapshot.diff(kept.snapshot), *different(loaded.moment, kept.moment))
        if len(self.kept) == MOST_SNAPSHOTS:
            self.kept.remove(kept)
        self.kept.append(loaded)

    @precondition(lambda self: len(self.guests) < MOST_SPACES)
    @rule(pick=picks)
    def fork(self, pick: int) -> None:
        """A forked child."""
        guest = self.guest(pick)
        self.add(guest.space.fork(), guest.model.forked())

    @precondition(lambda self: len(self.guests) > 1)
    @rule(pick=picks)
    def close_space(self, pick: int) -> None:
        """A space goes; its snapshots stay."""
        guest = self.guest(pick)
        guest.check(contents=True)
        guest.space.close()
        self.guests.remove(guest)
        for kept in self.kept:
            if kept.guest is guest:
                kept.guest = None

    @precondition(lambda self: len(self.kept) > 1)
    @rule(pick=picks)
    def close_snapshot(self, pick: int) -> None:
        """A snapshot goes."""
        self.kept.pop(pick % len(self.kept)).snapshot.close()

    @rule(pick=picks, start=booleans)
    def dirty_pages(self, pick: int, start: bool) -> None:
        """Since each older snapshot of the space, and since start_dirty_tracking, which may be now."""
        guest = self.guest(pick)
        for kept in self.kept:
            if kept.guest is guest:
                self.check_dirty(guest, guest.space.dirty_pages(since=kept.snapshot), kept.moment)
        if guest.tracked is not None:
            self.check_dirty(guest, guest.space.dirty_pages(), guest.tracked)
        if start:
            guest.space.start_dirty_tracking()
            guest.tracked = moment(guest.model)
            assert guest.space.dirty_pages().num_bytes == 0

    @precondition(lambda self: self.kept)
    @rule(pick=picks, other=picks)
    def diff(self, pick: int, other: int) -> None:
        """Of two snapshots, of whichever spaces."""
        one, two = self.kept[pick % len(self.kept)], self.kept[other % len(self.kept)]
        self.check_between(one.snapshot.diff(two.snapshot), *different(one.moment, two.moment))

    def check_between(self, found: AddrRangeSeq, must: set[int], may: set[int]) -> None:
        """All pages that must be there are, and no others than those that may be."""
        pages = {number for ar in found for number in range(ar.start // PAGE, -(-ar.end // PAGE))}
        assert must <= pages, f"missing {[hex(number) for number in sorted(must - pages)]}"
        assert pages <= may, f"too many {[hex(number) for number in sorted(pages - may)]}"

    def check_dirty(self, guest: Guest, found: AddrRangeSeq, since: Moment) -> None:
        """The same of dirty pages; where hosts know less, all that is mapped may be."""
        must, may = written(since, moment(guest.model))
        self.check_between(found, must, may if self.exact else {*guest.model.pages})


class WithPagemap(Snapshots):
    """A host without PAGEMAP_SCAN."""

    host = ((host_pages._Host, "scans", False),)
    exact = False


class WithoutPagemap(Snapshots):
    """A sandbox that refuses /proc/self/pagemap: bytes are compared."""

    host = ((host_pages, "_PAGEMAP", "/proc/self/no such file"),)


class ByCopying(Snapshots):
    """A host that maps no images."""

    host = tuple((module, "maps_images", lambda: False) for module in (overlay, saved_state, saved_bytes))
    follows_files = False  # what was copied back is the space's own


class FewExtents(Snapshots):
    """Images that become one all the time."""

    host = ((overlay, "MAX_EXTENTS", 2),)
    exact = False


TestSnapshots, TestWithPagemap = Snapshots.TestCase, WithPagemap.TestCase
TestWithoutPagemap, TestByCopying = WithoutPagemap.TestCase, ByCopying.TestCase
TestFewExtents = FewExtents.TestCase
TestSnapshots.settings = settings(stateful_step_count=50, max_examples=settings().max_examples // 2)
_FEWER = settings(stateful_step_count=50, max_examples=max(settings().max_examples // 5, 10))
TestWithPagemap.settings = TestWithoutPagemap.settings = TestByCopying.settings = TestFewExtents.settings = _FEWER
