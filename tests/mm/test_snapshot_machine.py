"""Snapshots, restore, fork and dirty pages of several address spaces, against dicts of pages (snapshot_model).

The machine maps, advises and writes, through the space and through host pointers from before. After each step each
space has the model's mappings, bytes, guards, heap and locks. Each space has aliases of its memory, kept as an emulator
would: from host_runs, dropped when on_change tells of their addresses. They always show the model's bytes.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable
from typing import ClassVar
from unittest import mock

import pytest
from attrs import define, evolve, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hostarch import AccessType, AddrRangeSeq, mman
from simulator_file import SimulatorFile
from snapshot_model import PAGE, RW, SOURCE_PAGES, Moment, Page, Source, Space, different, moment, written
from usermem import AddressSpace, ChangeKind, FaultError, FaultReason, SharedMemory, Snapshot
from usermem.mm import host_pages, overlay
from usermem.mm.host_runs import GuestRun
from usermem.mm.vma import locked_bytes

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or mmap.PAGESIZE != PAGE, reason="maps files at offsets of 4 KiB pages"
)

FIRST, PAGES = 0x400, 10
WINDOW = range(FIRST, FIRST + PAGES)
HEAP = range(0x800, 0x804)
MOST_SPACES, MOST_SNAPSHOTS = 4, 6
FIXED = mman.MAP_FIXED
MOVE = mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED

picks = st.integers(0, 59)  # of spaces, snapshots and aliases: what there is, modulo how many there are
runs = st.tuples(st.sampled_from(WINDOW), st.integers(1, 4)).map(lambda run: range(run[0], min(sum(run), WINDOW.stop)))
prots = st.sampled_from([RW, RW, RW, RW, mman.PROT_READ, mman.PROT_NONE])
data = st.one_of(st.binary(min_size=1, max_size=9), st.sampled_from([b"x" * PAGE, b"yz" * PAGE]))
places = st.tuples(st.sampled_from([*WINDOW, *HEAP]), st.sampled_from([0, 1, 8, PAGE // 2, PAGE - 4])).map(
    lambda at: at[0] * PAGE + at[1]
)
booleans = st.booleans()

ADVICE: dict[int, tuple[Callable[[Page], object], Callable[[Page], object]]] = {
    mman.MADV_DONTNEED: (lambda page: not page.locked, Page.forget),
    mman.MADV_GUARD_INSTALL: (lambda page: not page.locked, Page.install_guard),
    mman.MADV_GUARD_REMOVE: (lambda page: page.guard, lambda page: setattr(page, "guard", False)),
    mman.MADV_REMOVE: (
        lambda page: page.shared and page.source and page.source.held and not page.locked,
        lambda page: page.write(0, bytes(PAGE)),
    ),
    mman.MADV_DONTFORK: (lambda page: True, lambda page: setattr(page, "dont_fork", True)),
    mman.MADV_DOFORK: (lambda page: page.dont_fork, lambda page: setattr(page, "dont_fork", False)),
    mman.MADV_WIPEONFORK: (lambda page: page.anonymous, lambda page: setattr(page, "wipe", True)),
    mman.MADV_KEEPONFORK: (lambda page: page.wipe, lambda page: setattr(page, "wipe", False)),
}
"""Of which pages it succeeds, and what it does to them."""


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


@define(eq=False)
class Kept:
    """A snapshot, its model, and what there was to see of the space when it was made."""

    snapshot: Snapshot
    moment: Moment
    guest: Guest | None  # None: its space is closed
    maps: str
    aliases: dict[int, int]


def wanted_in(pages: dict[int, Page], number: int, wanted: Callable[[Page], object]) -> bool:
    """Whether a page is mapped, and as wanted."""
    return number in pages and bool(wanted(pages[number]))


class Snapshots(RuleBasedStateMachine):
    """The spaces and their models. One beginning has all contents compared after each step; else pages stay untouched
    until something touches them, and contents are compared where a rule says so, and at the end."""

    host: ClassVar[tuple[tuple[object, str, object], ...]] = ()
    """What other hosts have: (where, name, value) to be put there."""
    exact: ClassVar[bool] = True
    """Whether pages that were only read are not dirty."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = [mock.patch.object(*each) for each in self.host]
        for patch in self.patches:
            patch.start()
        self.guests: list[Guest] = []
        self.kept: list[Kept] = []
        self.file = os.memfd_create("file")
        content = [bytes([65 + number]) * PAGE for number in range(SOURCE_PAGES)]
        os.pwrite(self.file, b"".join(content), 0)
        self.host_file = Source(False, [*content], inode=os.fstat(self.file).st_ino)
        self.private_object = Source(False, [*content], read_in=True)
        self.shared_object = Source(False, [*content])
        self.memory = Source(True)
        self.shared_memory = SharedMemory(SOURCE_PAGES * PAGE)
        self.memory.inode = self.shared_memory.inode
        self.objects = SimulatorFile(b"".join(content)), SimulatorFile(b"".join(content))
        self.always = False

    def teardown(self) -> None:
        """Compare once more, close all."""
        try:
            for guest in self.guests:
                guest.check(contents=True)
        finally:
            for guest in self.guests:
                guest.space.close()
            for kept in self.kept:
                kept.snapshot.close()
            os.close(self.file)
            for patch in self.patches:
                patch.stop()

    @initialize(always=booleans)
    def begin(self, always: bool) -> None:
        """One space, with a heap and a few pages."""
        self.always = always
        self.add(AddressSpace(), Space())
        self.guests[0].space.set_brk(HEAP.start * PAGE)
        self.guests[0].model.brk_start = self.guests[0].model.brk = HEAP.start * PAGE
        for run, kind, shared in (range(4), "", False), (range(4, 5), "memory", True), (range(5, 7), "file", False):
            self.mmap(0, range(FIRST + run.start, FIRST + run.stop), RW, kind, shared, 0)
        self.heap(0, 2 * PAGE + 5)

    def add(self, space: AddressSpace, model: Space) -> None:
        """One more space."""
        self.guests.append(Guest(space, model))

    def guest(self, pick: int) -> Guest:
        """One of the spaces."""
        return self.guests[pick % len(self.guests)]

    def found(self, pick: int, run: range, wanted: Callable[[Page], object]) -> tuple[range, list[Page]]:
        """The first pages from some place in a run on, around the window's end, that are mapped and as wanted."""
        pages = self.guest(pick).model.pages
        good = [number for number in [*range(run.start, WINDOW.stop), *WINDOW] if wanted_in(pages, number, wanted)]
        first = good[0] if good else 0
        stop = first
        while stop < first + len(run) and wanted_in(pages, stop, wanted):
            stop += 1
        return range(first, stop), [pages[number] for number in range(first, stop)]

    # --- mapping

    @rule(
        pick=picks,
        run=runs,
        prot=prots,
        kind=st.sampled_from(["", "", "", "anonymous", "file", "object", "memory", "memory"]),
        shared=booleans,
        offset=st.integers(0, 3),
    )
    def mmap(self, pick: int, run: range, prot: int, kind: str, shared: bool, offset: int) -> None:
        """Anonymous memory, private ("") or shared; a host file, a simulator's object, a SharedMemory that all map."""
        guest = self.guest(pick)
        addr, length, place = run.start * PAGE, len(run) * PAGE, offset * PAGE
        shared = kind == "anonymous" or (kind != "" and shared)
        flags = FIXED | (mman.MAP_SHARED if shared else mman.MAP_PRIVATE)
        source, name = None, "/dev/zero (deleted)"
        if kind in ("", "anonymous"):
            guest.space.mmap(addr, length, prot, flags | mman.MAP_ANONYMOUS)
            source, offset = Source(True) if shared else None, 0
        elif kind == "file":
            guest.space.mmap(addr, length, prot, flags, self.file, place)
            source, name = self.host_file, "/memfd:file (deleted)"
        elif kind == "object":
            guest.space.map_object(addr, length, prot, flags, self.objects[shared], place)
            source, name = self.shared_object if shared else self.private_object, ""
        else:
            guest.space.map_object(addr, length, prot, flags, self.shared_memory, place)
            source = self.memory
        if source is None:
            pages = [Page(prot) for _ in run]
        else:
            pages = [Page(prot, shared, source, offset + i, name=name) for i in range(len(run))]
        guest.model.pages.update(zip(run, pages, strict=True))

    @rule(pick=picks, run=runs)
    def munmap(self, pick: int, run: range) -> None:
        """Unmap, mapped or not."""
        guest = self.guest(pick)
        guest.space.munmap(run.start * PAGE, len(run) * PAGE)
        for number in run:
            guest.model.pages.pop(number, None)

    @rule(pick=picks, run=runs, prot=prots)
    def mprotect(self, pick: int, run: range, prot: int) -> None:
        """Other rights."""
        run, pages = self.found(pick, run, lambda page: True)
        if pages:
            self.guest(pick).space.mprotect(run.start * PAGE, len(run) * PAGE, prot)
        for page in pages:
            page.prot = prot

    @rule(pick=picks, run=runs, to=st.sampled_from(WINDOW), dont_unmap=booleans)
    def move(self, pick: int, run: range, to: int, dont_unmap: bool) -> None:
        """mremap to another place, perhaps leaving a private page empty where it was; by one page more if it can."""
        run, pages = self.found(pick, run, lambda page: True)
        target, guest = range(to, to + len(run)), self.guest(pick)
        if pages and to == run.stop and to not in guest.model.pages:
            self.grow(guest, run.stop - 1)
        if not pages or set(run) & set(target) or target.stop > WINDOW.stop:
            return
        keeps = dont_unmap and len(run) == 1 and not pages[0].locked
        flags = MOVE | (mman.MREMAP_DONTUNMAP if keeps else 0)
        guest.space.mremap(run.start * PAGE, len(run) * PAGE, len(run) * PAGE, flags, to * PAGE)
        for number, page in zip(run, pages, strict=True):
            if keeps:
                moved = evolve(page, token=object())
                page.forget()
                page.guard = False
            else:
                moved = guest.model.pages.pop(number)
                moved.token = object()
            guest.model.pages[number + to - run.start] = moved

    def grow(self, guest: Guest, number: int) -> None:
        """mremap of a page to two, where it is."""
        page = guest.model.pages[number]
        guest.space.mremap(number * PAGE, PAGE, 2 * PAGE)
        grown = evolve(page, own=None, guard=False, token=object())
        grown.number += page.source is not None
        guest.model.pages[number + 1] = grown

    @rule(pick=picks, end=st.integers(0, len(HEAP) * PAGE))
    def heap(self, pick: int, end: int) -> None:
        """brk to somewhere in its pages."""
        guest = self.guest(pick)
        model = guest.model
        old, new = -(-model.brk // PAGE), -(-(model.brk_start + end) // PAGE)
        if new < old and not any(number in model.pages for number in range(new, old)):
            return
        for number in range(new, old):
            model.pages.pop(number, None)
        for number in range(old, new):
            model.pages[number] = Page(RW)
        model.brk = model.brk_start + end
        assert guest.space.brk(model.brk) == model.brk

    # --- advice, names and locks

    @rule(pick=picks, run=runs, advice=st.sampled_from([*ADVICE, *ADVICE, mman.MADV_DONTNEED, mman.MADV_GUARD_INSTALL]))
    def madvise(self, pick: int, run: range, advice: int) -> None:
        """Advice where it succeeds."""
        wanted, follow = ADVICE[advice]
        run, pages = self.found(pick, run, wanted)
        if pages:
            assert self.guest(pick).space.madvise(run.start * PAGE, len(run) * PAGE, advice) == 0
        for page in pages:
            follow(page)

    @rule(pick=picks, run=runs, what=st.sampled_from(["one", "two", "lock", "unlock"]))
    def name_or_lock(self, pick: int, run: range, what: str) -> None:
        """A name for anonymous memory; mlock2 that touches nothing, and munlock."""
        names = what in ("one", "two")
        run, pages = self.found(pick, run, lambda page: page.anonymous or not names)
        where, space = (run.start * PAGE, len(run) * PAGE), self.guest(pick).space
        if names and pages:
            assert space.set_name(*where, what) == 0
        elif pages:
            assert (space.mlock(*where, mman.MLOCK_ONFAULT) if what == "lock" else space.munlock(*where)) == 0
        for page in pages:
            if names:
                page.name = f"[anon:{what}]"
            else:
                page.locked = what == "lock"

    # --- writing

    @rule(pick=picks, addr=places, data=data, ignore=booleans, way=st.sampled_from(["copy", "copy", "zero", "swap"]))
    def write(self, pick: int, addr: int, data: bytes, ignore: bool, way: str) -> None:
        """copy_out, zero_out or swap_uint32, up to the first page that may not be written."""
        guest = self.guest(pick)
        if way == "swap":
            addr, data = addr & -4, (data * 4)[:4]
        elif way == "zero":
            data = bytes(len(data))
        n = guest.model.reach(addr, len(data), 0 if ignore else mman.PROT_WRITE)
        done = len(data)
        try:
            if way == "swap":
                guest.space.swap_uint32(addr, int.from_bytes(data, "little"), ignore_permissions=ignore)
            elif way == "zero":
                done = guest.space.zero_out(addr, len(data), ignore_permissions=ignore)
            else:
                done = guest.space.copy_out(addr, data, ignore_permissions=ignore)
        except FaultError as fault:
            done = fault.transferred
        assert done == n
        guest.model.write(addr, data[:n])

    @rule(pick=picks, which=picks, at=st.sampled_from([0, 5, PAGE - 9]), data=st.binary(min_size=1, max_size=9))
    def write_through_pointer(self, pick: int, which: int, at: int, data: bytes) -> None:
        """As an emulator does, by a host address from before."""
        guest = self.guest(pick)
        if guest.aliases:
            number = sorted(guest.aliases)[which % len(guest.aliases)]
            ctypes.memmove(guest.aliases[number][0] + at, data, len(data))
            guest.model.pages[number].write(at, data)

    @rule(number=st.integers(0, 8), data=st.binary(min_size=1, max_size=9))
    def write_file(self, number: int, data: bytes) -> None:
        """The file is written by somebody else."""
        os.pwrite(self.file, data, number * PAGE)
        self.host_file.write(number, 0, data)

    @rule(pick=picks, contents=booleans)
    def look(self, pick: int, contents: bool) -> None:
        """Alias everything, or compare all contents."""
        if contents:
            self.guest(pick).check(contents=True)
        else:
            self.guest(pick).look()

    # --- snapshots

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

    @invariant()
    def same(self) -> None:
        """Every space is its model."""
        for guest in self.guests:
            guest.check(contents=self.always)


class WithPagemap(Snapshots):
    """A host without PAGEMAP_SCAN."""

    host = ((host_pages._Host, "scans", False),)
    exact = False


class WithoutPagemap(Snapshots):
    """A sandbox that refuses /proc/self/pagemap: bytes are compared."""

    host = ((host_pages, "_PAGEMAP", "/proc/self/no such file"),)


class ByCopying(Snapshots):
    """A host that maps no images."""

    host = ((overlay, "maps_images", lambda: False),)


class FewExtents(Snapshots):
    """Images that become one all the time."""

    host = ((overlay, "MAX_EXTENTS", 2),)
    exact = False


TestSnapshots, TestWithPagemap = Snapshots.TestCase, WithPagemap.TestCase
TestWithoutPagemap, TestByCopying = WithoutPagemap.TestCase, ByCopying.TestCase
TestFewExtents = FewExtents.TestCase
TestSnapshots.settings = settings(stateful_step_count=50)
for each in (TestWithPagemap, TestWithoutPagemap, TestByCopying, TestFewExtents):
    each.settings = settings(stateful_step_count=50, max_examples=max(settings().max_examples // 5, 10))
