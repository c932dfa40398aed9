"""MappingMachine: a hypothesis machine that maps, advises and writes in several address spaces, and in their models.

What is written goes through the space, or through host pointers from before. After each step each space has the model's
mappings, bytes, guards, heap and locks, and its aliases show the model's bytes (:mod:`snapshot_guest`).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import ClassVar
from unittest import mock

from attrs import evolve
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hostarch import mman
from simulator_file import SimulatorFile
from snapshot_guest import Guest
from snapshot_model import PAGE, RW, SOURCE_PAGES, Page, Source, Space
from usermem import AddressSpace, FaultError, SharedMemory

FIRST, PAGES = 0x400, 10
WINDOW = range(FIRST, FIRST + PAGES)
HEAP = range(0x800, 0x804)
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


def wanted_in(pages: dict[int, Page], number: int, wanted: Callable[[Page], object]) -> bool:
    """Whether a page is mapped, and as wanted."""
    return number in pages and bool(wanted(pages[number]))


class MappingMachine(RuleBasedStateMachine):
    """The spaces and their models.

    One beginning has all contents compared, and all aliased, after each step. Else pages stay untouched until something
    touches them, and contents are compared where a rule says so, and at the end.
    """

    host: ClassVar[tuple[tuple[object, str, object], ...]] = ()
    follows_files: ClassVar[bool] = True
    """Whether private pages that nobody wrote show what others write to the file; mmap(2) leaves that open."""
    """What other hosts have: (where, name, value) to be put there."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = [mock.patch.object(*each) for each in self.host]
        for patch in self.patches:
            patch.start()
        self.guests: list[Guest] = []
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
        ends = bool(pages) and pages[-1].source is not None and pages[-1].source.held  # shared memory: it has an end
        if pages and not ends and to == run.stop and to not in guest.model.pages:
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
        if not self.follows_files:
            return
        os.pwrite(self.file, data, number * PAGE)
        self.host_file.write(number, 0, data)

    @rule(pick=picks, contents=booleans)
    def look(self, pick: int, contents: bool) -> None:
        """Alias everything, or compare all contents."""
        if contents:
            self.guest(pick).check(contents=True)
        else:
            self.guest(pick).look()

    @invariant()
    def same(self) -> None:
        """Every space is its model."""
        for guest in self.guests:
            guest.check(contents=self.always)
            if self.always:
                guest.look()
