"""MemoryMap: what is mapped in an address space, and where its bytes are.

It owns the lock, the tables and the limits, and nobody else changes them. The calls (mmap, mremap, brk, madvise, ...)
are functions over it: they check what Linux checks, and then say what changes by a function over a :class:`Change`,
which :meth:`MemoryMap.change` runs and publishes.

Who may overtake whom:

- A reader takes ``tables`` once, without a lock, and sees one moment of the address space, whole.
- Changes exclude each other by the lock. A signal handler, a weakref callback or a destructor that changes the same
  space in the middle of a change of its own thread is let in, and goes first: it publishes, and the change that it
  interrupted is built again over its outcome.
- Cached pages that a change makes wrong are dropped before it publishes, and nothing is cached in between. So an
  exception anywhere leaves the old tables with fewer cached pages, or the new ones.
- Listeners, hooks, and the code of mapped objects run without the lock.

Source: gVisor pkg/sentry/mm (MemoryManager).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from mmap import mmap
from typing import Final, TypeVar
from weakref import WeakSet

from attrs import evolve

from hostarch import Arch, mman
from safemem.buffers import check_int
from safemem.errors import error
from safemem.fork import fork_safe_lock
from usermem.errors import FaultReason
from usermem.mm.backing.anonymous import Anonymous
from usermem.mm.backing.object_pages import write_back_released
from usermem.mm.change import Change, Dropped, Tables
from usermem.mm.host_run import HostRun
from usermem.mm.limits import Limits
from usermem.mm.listeners import Event, Listeners
from usermem.mm.page_cache import PageCache, Stretch
from usermem.mm.pma import PMA, PMASet
from usermem.mm.room import room
from usermem.mm.vma import VMA, VMASet

# How many pages stay free below a mapping that grows down: stack_guard_gap, mm/mmap.c.
_GUARD_PAGES: Final = 256

# Linux leaves room for the stack between the mappings and the end of user space: MIN_GAP, arch/x86/mm/mmap.c.
_STACK_GAP: Final = 128 << 20

# How often an access whose mapping others change begins anew, before it goes where it was going.
_ATTEMPTS: Final = range(7, -1, -1)

CACHED: Final = (mman.PROT_READ, mman.PROT_WRITE, mman.PROT_READ | mman.PROT_WRITE)
"""The accesses whose pages are cached: the cache knows what can be read, and what can be written and so read."""

_IMPLY_READ: Final = mman.PROT_WRITE | mman.PROT_EXEC

# How many stretches of one piece of memory may be cached before it is divided: a change of it drops them all.
_CROWDED: Final = 128

T = TypeVar("T")
Made = tuple[list[Dropped], list[Event]]
Quiet = tuple[int, list[Dropped], list[Event]]
"""The process that holds the map quiet, and what its changes leave to be done when it no longer does."""
Found = tuple[Tables, VMA, PMA, int]
"""Tables, the mapping and the memory that an address lies in, and where what can be accessed there ends."""


class _ClosedError(ValueError):
    """The address space is closed."""


class MemoryMap:
    """The tables of one address space, and the only one to change them."""

    def __init__(self, arch: Arch, limits: Limits, cache: PageCache, seed: int | None = None) -> None:
        """With a ``seed`` mappings begin at an address that follows from it (address space layout randomisation)."""
        self.arch = arch
        self.limits: Limits = limits
        self.tables: Tables = Tables(VMASet(), PMASet())
        self.anonymous: Anonymous = Anonymous()
        self.guard: int = _GUARD_PAGES << arch.page_shift
        self.lowest: int = arch.page_round_up(arch.min_addr)
        self.base: int = arch.page_round_down(arch.max_addr - min(_STACK_GAP, arch.max_addr // 6))
        if seed is not None:
            from random import Random  # 2 ms at import

            bits = 28 if arch.pointer_size == 8 else 8
            most = arch.max_addr.bit_length() - arch.page_shift - 3  # 24 on RISC-V, as in Linux
            self.base -= Random(check_int(seed, "seed")).getrandbits(max(min(bits, most), 0)) << arch.page_shift
        self.listeners: Listeners = Listeners()
        self.code_listener: Callable[[int, int], object] | None = None
        """See :mod:`usermem.mm.code_writes`."""
        self.failed_write_back: Exception | None = None
        self.pins: WeakSet[object] = WeakSet()
        """What the blocks keep alive that were handed out and can be written: see :mod:`usermem.mm.pins`."""
        self.held: Quiet | None = None
        """Set while the map is quiet: see :mod:`usermem.mm.quiet`."""
        self._cache = cache
        self._lock = fork_safe_lock()

    def follow(self, parent: MemoryMap) -> None:
        """Have the limits that another map has now, and its places for memory, before anything is mapped."""
        self.limits = evolve(parent.limits)
        self.anonymous = parent.anonymous
        self.base = parent.base

    def check_open(self) -> None:
        """Raise ValueError if the space is closed."""
        if self.tables.closed:
            raise _ClosedError("the address space is closed")

    def change(self, build: Callable[[Change], T]) -> T:
        """Publish the tables that ``build`` makes, tell the listener, and return what ``build`` returned.

        ``build`` may run more than once, and must change nothing but the Change. What it raises passes through, and
        nothing has changed. Raises ValueError if the space is closed.
        """
        made: list[Made] = []
        try:
            # In one line: a trace function that raises at the line of a ``with`` that ends would leave it locked.
            with self._lock: result = self._publish(build, made)  # fmt: skip # noqa: E701
        finally:
            while made:
                self._finish(*made.pop())
        if not self._is_quiet():
            write_back_released()
        return result

    def _is_quiet(self) -> bool:
        """Whether this thread holds the map quiet, and so the lock."""
        return self.held is not None and bool(self._lock._is_owned())  # type: ignore[attr-defined]

    def _publish(self, build: Callable[[Change], T], made: list[Made]) -> T:
        """Build and publish under the lock; again where a signal handler, say, has published in the meantime."""
        while True:
            old = self.tables
            if old.closed:
                self.check_open()
            change = Change(old)
            result = build(change)
            pieces = change.pmas.count
            if pieces > self.limits.max_pma_count and pieces > old.pmas.count and change.told:
                raise error(errno.ENOMEM, f"the memory of the mappings would be in {pieces} pieces")
            used = change.used
            held = self.held is not None and self.held[0] == os.getpid()  # else another thread held it, before a fork
            try:
                if change.touched or change.gone:
                    self._cache.frozen = True
                    self._forget(change)
                    change.used = []
                if change.dropped or self.listeners.listener is not None:
                    events: list[Event] = []
                    made.append((change.dropped[::-1], events))
                    change.dropped = []  # see _forget
                    if self.listeners.listener is not None:
                        self.listeners.see(old)
                        self.listeners.note(change.told, change, events)
                # One line without a call: no handler can run between the look and the store.
                self.tables = outcome = change if self.tables is old else self.tables
            finally:
                self._cache.frozen = held
            if outcome is change:
                try:
                    for pma, start, end in used:
                        pma.note_used(start, end)  # not before: more of it might be mapped by a handler, and written
                except MemoryError:
                    pass  # it spares work when the memory is given back, and the change is made
                return result
            while made:
                self.listeners.withdraw(made.pop()[1])

    def _finish(self, dropped: list[Dropped], events: list[Event]) -> None:
        """Write back what is unmapped now, and tell the listener: without the lock, so not while it is held."""
        if self.held is not None and self._is_quiet():
            self.held[1][:0] = dropped
            self.held[2].extend(events)
            return
        try:
            self._write_back(dropped)
        finally:
            if events:
                self.listeners.tell(events, self.tables)

    def _forget(self, change: Change) -> None:
        """Drop the cached stretches that lie in changed memory, or in a mapping that changed or has new neighbours."""
        while change.touched:  # the tables must keep nothing alive
            pma, vmas = change.touched.pop()
            if pma.cached:
                first = pma.start
                self._cache.forget(pma.cached, [vma.start if vma.start > first else first for vma in vmas])
        while change.gone:
            cached = change.gone.pop().cached
            if cached:
                self._cache.forget(cached, list(cached))
        self._cache.words = {}  # now that no word can be found by a stretch, and no rest
        self._cache.rests = {}

    def locate(self, addr: int, access: int, *, ignore_permissions: bool) -> Stretch | FaultReason:
        """Where addr's bytes are and how far the run goes, or why they cannot be accessed.

        What the code of a mapped object changes while it is asked counts; so does what other threads change meanwhile,
        up to a point, lest they hold the access up for ever. Raises what that code raises.
        """
        for left in _ATTEMPTS:
            found = self._look(addr, access, ignore_permissions)
            if not isinstance(found, tuple):
                return found
            _, vma, pma, end = found
            if end > pma.end:
                end = pma.end
            stretch = pma.stretch(end)
            cached = access in CACHED and vma.backing.steady and isinstance(stretch[0], mmap) and not ignore_permissions
            fresh = stretch if cached else None
            # What is not cached takes the lock too: while the map is quiet, every access waits here. By ``current``
            # usermem.mm.quiet sees that this one goes on to its bytes.
            with self._lock: current = self._remember(addr, found, fresh, access) or not left  # fmt: skip # noqa: E701
            if len(pma.cached) > _CROWDED:
                self._thin(pma)
            if current:
                break
        return stretch

    def _remember(self, addr: int, found: Found, fresh: Stretch | None, access: int) -> bool:
        """Cache addr's page if it is given, and return whether the tables are still the ones in which it was found.

        Call it under the lock.
        """
        tables, vma, pma, _ = found
        now = self.tables
        if now is not tables and (now.pmas.find(addr) is not pma or now.vmas.find(addr) is not vma):
            return False
        writable = access & mman.PROT_WRITE != 0
        watched = writable and self.code_listener is not None and vma.prot & mman.PROT_EXEC
        if fresh is not None and not watched and not self._cache.frozen:
            start = vma.start if vma.start > pma.start else pma.start
            stretch = self._cache.stretch(pma.cached, start, fresh, writable)
            if self.tables is now:  # a signal handler may have changed them before a change could find the stretch
                self._cache.remember(addr, stretch, writable)
            else:
                self._cache.forget(pma.cached, [start])
        return True

    def _thin(self, pma: PMA) -> None:
        """Take what is gone out of the many cached stretches of a PMA; divide it if that is not enough."""
        with self._lock: left = self._cache.prune(pma.cached)  # fmt: skip # noqa: E701
        if left > _CROWDED // 2:
            self.change(partial(Change.divide, pma=pma))

    def _look(self, addr: int, access: int, ignore_permissions: bool) -> Found | FaultReason:
        """Where addr lies, or why it cannot be accessed."""
        tables = self.tables
        vma = tables.vmas.first_from(addr)
        if vma is None or vma.start > addr:
            if vma is None or not vma.growsdown or not self._grow_down(addr):
                return FaultReason.UNMAPPED
            tables = self.tables
            if (vma := tables.vmas.find(addr)) is None:
                return FaultReason.UNMAPPED
        rights = vma.max_prot if ignore_permissions else vma.prot
        if rights & _IMPLY_READ:
            rights |= mman.PROT_READ
        if access & ~rights:
            return FaultReason.PERMISSION
        if tables.guards.count and tables.guards.find(addr) is not None:
            return FaultReason.GUARD
        try:
            end = vma.end if vma.backing.anonymous else self.accessible_end(vma)
            if addr >= end:
                return FaultReason.BEYOND_FILE
            return tables, vma, tables.pmas.find(addr) or self.fill(tables, vma, addr, end), end
        except MemoryError:
            return FaultReason.NO_MEMORY

    def accessible_end(self, vma: VMA) -> int:
        """Where the pages of a mapping end that its backing has. Call it without the lock: it may be slow."""
        accessible = vma.backing.accessible(self.arch.page_size)
        return vma.end if accessible is None else min(vma.end, vma.start + accessible - vma.offset)

    def fill(self, tables: Tables, vma: VMA, addr: int, end: int) -> PMA:
        """Memory for the page at addr, which has none there, up to ``end`` at most. Raises what Backing.run does."""
        low, high = room(tables, vma, addr)
        if not vma.backing.anonymous:
            high = min(high, end)
        distance = addr - vma.offset_at(addr)
        offset, run = vma.backing.run(addr - distance, low - distance, high - distance)
        start = offset + distance
        filled = PMA(start, run)
        low, high = max(low, start), min(high, filled.end)

        def place(change: Change) -> PMA:
            first, last = low, high
            if (change.vmas, change.pmas, change.guards) != (tables.vmas, tables.pmas, tables.guards):  # by identity
                now, there = change.vmas.find(addr), change.pmas.find(addr)
                if (
                    change.guards.find(addr) is not None
                    or now is None
                    or now.backing.key != vma.backing.key
                    or now.offset_at(addr) != vma.offset_at(addr)
                ):
                    return filled.cut(low, high)  # overtaken: this access goes where it was going
                if there is not None:
                    return there
                first, last = room(change, now, addr)
                first, last = max(first, low), min(last, high)
            pma = filled.cut(first, last)
            change.place(pma)
            return pma

        return self.change(place)

    @staticmethod
    def runs(tables: Tables, start: int, end: int) -> list[tuple[int, HostRun]]:
        """The host memory behind [start, end) so far, as (first address, run), in order; without what has none yet."""
        found = []
        for pma in tables.pmas.overlapping(start, end):
            first, last = max(pma.start, start), min(pma.end, end)
            found.append((first, pma.run.part(first - pma.start, last - pma.start)))
        return found

    def can_cut(self, vmas: VMASet, start: int, end: int) -> bool:
        """Whether unmapping [start, end) leaves no more mappings than there may be."""
        few = vmas.count < self.limits.max_map_count
        return few or (vma := vmas.find(start)) is None or vma.start == start or vma.end <= end

    def check_cut(self, vmas: VMASet, start: int, end: int) -> None:
        """Raise ENOMEM if unmapping [start, end) would leave too many mappings."""
        if not self.can_cut(vmas, start, end):
            raise error(errno.ENOMEM, f"there are {len(vmas)} mappings")

    def check_splits(self, change: Change, before: int, code: int = errno.ENOMEM) -> None:
        """Raise ``code`` if a change of what mappings are leaves too many, and more than ``before`` (split_vma)."""
        count = change.vmas.count
        if count > self.limits.max_map_count and count > before:
            raise error(code, f"there would be {count} mappings")

    def _grow_down(self, addr: int) -> bool:
        """Have the mapping above addr grow down to it if it may (Linux's expand_downwards, acct_stack_growth)."""

        def grow(change: Change) -> bool:
            vma = change.vmas.first_from(addr)
            if vma is None or vma.start <= addr or not vma.growsdown:
                return vma is not None and vma.start <= addr
            start = self.arch.page_round_down(addr)
            too_long = vma.end - start > self.limits.stack_limit
            if start < self.arch.min_addr or too_long or not self.limits.may_grow(change.vmas, vma, vma.start - start):
                return False
            before = change.vmas.last_before(start)
            # A mapping that grows down itself, or that cannot be accessed, may be nearer.
            if before is not None and before.prot and not before.growsdown and start - before.end < self.guard:
                return False
            change.add(vma.over(start, vma.start, vma.prot))
            return True

        return self.change(grow)

    def _write_back(self, dropped: list[Dropped]) -> None:
        """Have backings take what was written to parts that are unmapped now, the last in the list first.

        As in Linux the unmapping call does not tell what failed: the next msync does, or close.
        """
        while dropped:
            backing, start, end = dropped.pop()
            try:
                backing.write_back(start, end)
            except Exception as exc:
                self.failed_write_back = self.failed_write_back or exc.with_traceback(None)  # which keeps the pages
            del backing

    def close(self) -> None:
        """See AddressSpace.close."""

        def build(change: Change) -> None:
            change.unmap(0, 1 << 64)
            change.closed = True

        if self.tables.closed:
            return
        try:
            with suppress(_ClosedError):  # by another thread, meanwhile
                self.change(build)
        finally:
            self._cache.readable.clear()
            self._cache.writable.clear()
            self.raise_failed_write_back()

    def raise_failed_write_back(self) -> None:
        """Raise, once, the first error of writing back memory that was unmapped."""
        failed, self.failed_write_back = self.failed_write_back, None
        if failed is not None:
            try:
                raise failed
            finally:
                del failed
