"""Arena: host memory for guest pages, from few large reservations.

An arena maps host memory in big NORESERVE chunks (the host allows about 65,530 mappings a process) and hands out
page-aligned :class:`HostRun` pieces of it, all zero. Reserved memory costs nothing until it is touched. Nobody
else can see or truncate it, so plain slices are safe.

A piece is given back when the last reference to its memory is gone: a table's, a copy's in flight, or that of any
view. Its content then becomes zero and its pages return to the host, but for those of the last piece, if little of it
was used: a guest that maps, touches and unmaps a page over and over gets it again, without a system call. Cutting a run
cuts the lease below it, so that each part is given back on its own.
"""

from __future__ import annotations

import itertools
import mmap
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from safemem.fork import fork_safe_lock
from usermem.mm.free_list import FreeList
from usermem.mm.host_calls import reserve
from usermem.mm.host_run import HostRun, mmap_address
from usermem.mm.overlay import Overlay

_MADV_DONTNEED: Final = getattr(mmap, "MADV_DONTNEED", None)
_FIRST_CHUNK: Final = 1 << 28
_LARGEST_CHUNK: Final = 1 << 36
# Chunks are this far apart in the free list, and no longer: pieces of two are never neighbours.
_CHUNK_SHIFT: Final = 56

# What was used of a piece, up to this size in bytes, is cleared in 0.3 us; giving its pages up and touching them again
# takes 15 us.
_SMALL: Final = 1 << 14

_ZEROS: Final = bytes(1 << 16)


class _Atom:
    """``[start, end)`` of a chunk: given back when the last reference to this object is gone."""

    __slots__ = ("_arena", "_chunk", "_owns", "_parts", "end", "start", "used")

    def __init__(self, arena: Arena, chunk: int, start: int, end: int, owns: bool) -> None:
        self._arena = arena
        self._chunk = chunk
        self._parts: tuple[_Atom, _Atom] | None = None
        self.start = start
        self.end = end
        self.used = start, end  # outside of it all bytes are zero
        self._owns = owns  # last: see __del__

    def parts(self, at: int) -> tuple[_Atom, _Atom]:
        """The two parts it is made of from now on: those before and from ``at``, if it was not cut before.

        Whoever holds the whole holds its parts. They are not handed out before the duty to give the memory back is
        theirs: an interrupt on the way may lose memory, but cannot give it back twice.
        """
        if self._parts is None:
            left = _Atom(self._arena, self._chunk, self.start, at, owns=False)
            made = left, _Atom(self._arena, self._chunk, at, self.end, owns=False)
            # A handler may have cut it meanwhile. Between this look and the store there is no call, so none can run.
            self._parts = made if self._parts is None else self._parts
        left, right = self._parts
        if self._owns:
            self._owns, left._owns, right._owns = False, True, True
        return left, right

    def all_used(self) -> tuple[_Atom, ...]:
        """Say that all of it was used, and return its parts, of which that must be said too."""
        self.used = self.start, self.end
        return self._parts or ()

    def __del__(self, ended: Callable[[], bool] = sys.is_finalizing) -> None:
        if getattr(self, "_owns", False) and not ended():  # not if its making was interrupted
            self._arena.give_back(self._chunk, self.start, self.end, self.used)


class _Lease:
    """The keeper of a run: the atoms that cover it, in order."""

    __slots__ = ("_atoms", "overlay")

    def __init__(self, atoms: list[_Atom], overlay: Overlay) -> None:
        self._atoms = atoms
        self.overlay = overlay

    def note_used(self, start: int, end: int) -> None:
        """Note which bytes may differ from zero, if the run is one atom. Atoms that are cut forget it."""
        if len(self._atoms) == 1:
            self._atoms[0].used = start, end

    def forget_used(self) -> None:
        """Forget what was noted of the atoms and of the parts that they were cut into."""
        todo = self._atoms.copy()
        while todo:
            todo += todo.pop().all_used()

    def part(self, start: int, end: int) -> _Lease:
        """The lease of [start, end) alone: atoms that reach over a bound are cut there, for good."""
        todo = self._atoms[::-1]
        found = []
        while todo:
            atom = todo.pop()
            if start <= atom.start and atom.end <= end:
                found.append(atom)
            elif atom.start < end and start < atom.end:
                todo += reversed(atom.parts(start if atom.start < start else end))
        return _Lease(found, self.overlay)


class Arena:
    """A source of zeroed, page-aligned host memory. Safe to use from any thread, and in a child after a fork."""

    _is_finalizing = staticmethod(sys.is_finalizing)

    def __init__(self) -> None:
        self.chunks: dict[int, tuple[mmap.mmap, int]] = {}
        """The reservations, each with its host address, by numbers that begin at 0."""
        self.overlay: Overlay = Overlay()
        self._numbers = itertools.count()
        self._lock = fork_safe_lock()
        self._owner = 0  # the thread that is at the free list
        self._free = FreeList()
        # Pieces come back from __del__, which may run in any thread at any moment: an append is atomic.
        self._returned: deque[tuple[int, int]] = deque()
        self._warm: deque[tuple[int, int]] = deque()  # the last small piece that came back: zero, not given up
        self._stuck: deque[tuple[int, int]] = deque()  # pieces in which an image still shows, for the host refused
        self._next_chunk = _FIRST_CHUNK
        self._madvise_zeroes = _MADV_ZEROES

    def allocate(self, length: int) -> HostRun:
        """``length`` bytes, a multiple of mmap.PAGESIZE, all zero. Raises MemoryError if the host has none left."""
        while self._warm:
            try:
                start, end = self._warm.pop()
            except IndexError:  # another thread has it
                break
            if end - start == length:
                return self._run(start, length)
            self._give_up(start, end)
        if self._stuck:
            with suppress(IndexError):  # another thread has it
                self._give_up(*self._stuck.popleft())
        with self._lock: at = self._take(length)  # fmt: skip # noqa: E701 - see MemoryMap.change
        if at is None:
            raise MemoryError(f"the host has no {length:#x} bytes of address space left")
        return self._run(at, length)

    def _run(self, at: int, length: int) -> HostRun:
        chunk, start = at >> _CHUNK_SHIFT, at & (1 << _CHUNK_SHIFT) - 1
        atom = _Atom(self, chunk, start, start + length, owns=True)
        memory, address = self.chunks[chunk]
        return HostRun(memory, address, start, start + length, _Lease([atom], self.overlay))

    def _take(self, length: int) -> int | None:
        """A place in the free list, under the lock. A signal handler in the middle of it gets a chunk of its own."""
        if self._owner == (me := threading.get_ident()):
            return self._reserve(length) << _CHUNK_SHIFT
        self._owner = me
        try:  # without a loop: at its jump back CPython 3.13 lets an interrupt pass ``finally`` by
            return self._find(length)
        finally:
            self._owner = 0

    def _find(self, length: int) -> int | None:
        while self._returned:
            self._free.give(*self._returned.popleft())
        at = self._free.take(length)
        if at is None:
            self._grow(length)
            at = self._free.take(length)
        return at

    def give_back(self, chunk: int, start: int, end: int, used: tuple[int, int]) -> None:
        """Take back a range that nothing refers to any more: zero what was used, and let the host have its pages."""
        if self._is_finalizing():  # modules may be gone
            return
        at, stop = chunk << _CHUNK_SHIFT | start, chunk << _CHUNK_SHIFT | end
        first, last = used
        memory, address = self.chunks[chunk]
        if last - first > _SMALL or self.overlay.covers(address + start, address + end):
            self._give_up(at, stop)
            return
        memory[first:last] = bytes(last - first)
        self._warm.append((at, stop))
        if len(self._warm) > 1:
            with suppress(IndexError):
                self._give_up(*self._warm.popleft())

    def _give_up(self, at: int, stop: int) -> None:
        start = at & (1 << _CHUNK_SHIFT) - 1
        memory, address = self.chunks[at >> _CHUNK_SHIFT]
        if self.overlay.covers(address + start, address + start + stop - at):
            try:
                self.overlay.uncover(address + start, address + start + stop - at)
            except MemoryError:  # it would show the image to whoever gets it: perhaps the host can later
                self._stuck.append((at, stop))
                return
        self._zero(memory, start, start + stop - at)
        self._returned.append((at, stop))

    def zero(self, run: HostRun) -> None:
        """Zero a run of this arena where it is, and let the host have its pages back."""
        if isinstance(run.memory, mmap.mmap):
            self._zero(run.memory, run.start, run.end)

    def _zero(self, memory: mmap.mmap, start: int, end: int) -> None:
        # Guest pages may be smaller than the host's: only whole host pages can be given up.
        first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if self._madvise_zeroes and _MADV_DONTNEED is not None and first < last:
            try:
                memory.madvise(_MADV_DONTNEED, first, last - first)
            except OSError:  # a sandbox since then
                self._madvise_zeroes = False
            else:
                memory[start:first] = bytes(first - start)
                memory[last:end] = bytes(end - last)
                return
        for at in range(start, end, len(_ZEROS)):
            stop = min(at + len(_ZEROS), end)
            if memory[at:stop] != _ZEROS[: stop - at]:  # to read what was not touched costs no memory, to write it does
                memory[at:stop] = _ZEROS[: stop - at]

    def _grow(self, length: int) -> None:
        size = max(self._next_chunk, length)
        while True:
            try:
                number = self._reserve(size)
                break
            except (OSError, ValueError, OverflowError) as exc:
                if size == length:
                    raise MemoryError(f"the host has no {length:#x} bytes of address space left") from exc
                size = max(size // 2, length)
        self._next_chunk = min(size * 2, _LARGEST_CHUNK)
        self._free.give(number << _CHUNK_SHIFT, (number << _CHUNK_SHIFT) + size)

    def _reserve(self, size: int) -> int:
        """A new chunk, none of it free, and its number. Raises OSError, ValueError or OverflowError."""
        memory = reserve(size)
        number = next(self._numbers)
        self.chunks[number] = memory, mmap_address(memory)
        return number


def _madvise_zeroes() -> bool:
    """Whether MADV_DONTNEED makes private pages zero here, as on Linux and not elsewhere, and the host lets us call."""
    if _MADV_DONTNEED is None:
        return False
    with reserve(mmap.PAGESIZE) as memory:
        memory[0] = 1
        with suppress(OSError):
            memory.madvise(_MADV_DONTNEED)
        return memory[0] == 0


_MADV_ZEROES = _madvise_zeroes()
