"""The tour's last stage: a small simulator is fuzzed from a snapshot, so that every run begins in the same memory."""

from __future__ import annotations

import random
import time

from hostarch import mman
from usermem.address_space import AddressSpace, Snapshot
from usermem.errors import FaultError
from usermem.tour.guest import PAGE, Say

_RUNS = 1000
_ANON = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS
_RW = mman.PROT_READ | mman.PROT_WRITE
_INPUT = 0x20_0000
_HEAP = 0x1000_0000
_HEAP_SIZE = 4 * PAGE
_TEXT = 100  # bytes that the guest has written before the snapshot
_ITEM = 3  # a command, a count, and a value


def fuzz_program(say: Say) -> bool:
    """Run a guest program 1,000 times on random inputs, and restore its memory each time.

    Return whether the planted bug was found and the memory is what it was.
    """
    say(f"\n9. A guest program is fuzzed: {_RUNS} runs, each restored from a snapshot")
    with AddressSpace() as space:
        space.mmap(_INPUT, PAGE, _RW, _ANON | mman.MAP_FIXED)
        space.mmap(_HEAP, _HEAP_SIZE, _RW, _ANON | mman.MAP_FIXED)
        space.copy_out(_HEAP, b"." * _TEXT)
        maps = space.maps()
        with space.snapshot() as snapshot:
            choice = random.Random(1)
            inputs = [choice.randbytes(choice.randrange(24) * _ITEM) + b"\0" for _ in range(_RUNS)]
            crashes = _crashes(space, snapshot, inputs, say)
            if not crashes:
                say("   the planted bug WAS NOT FOUND")
                return False
            shortest = min(crashes, key=len)
            say(f"   {len(crashes)} of them fault; the shortest input is {shortest.hex(' ', -_ITEM)}")
            _replay(space, snapshot, shortest, say)
            same = space.maps() == maps and not space.dirty_pages(snapshot)
    say(f"   the memory is {'what it was' if same else 'NOT WHAT IT WAS'}")
    return same


def _crashes(space: AddressSpace, snapshot: Snapshot, inputs: list[bytes], say: Say) -> list[bytes]:
    """The inputs on which the program faults."""
    found = []
    started = time.perf_counter()
    for data in inputs:
        space.copy_out(_INPUT, data)
        try:
            _program(space)
        except FaultError:
            found.append(data)
        space.restore(snapshot)
    say(f"   {_RUNS / (time.perf_counter() - started):,.0f} runs a second")
    return found


def _replay(space: AddressSpace, snapshot: Snapshot, data: bytes, say: Say) -> None:
    """Run on one input in a fork, which leaves the space alone, and tell where it faults and what it wrote."""
    with space.fork() as child, child.snapshot() as before:
        child.copy_out(_INPUT, data)
        try:
            _program(child)
        except FaultError as fault:
            say(f"   in a fork: {fault}; the heap ends at {_HEAP + _HEAP_SIZE:#x}")
        say(f"   the run wrote {child.dirty_pages(before)}; its parent {space.dirty_pages(snapshot) or 'nothing'}")


def _program(memory: AddressSpace) -> None:
    """The guest: it obeys the commands in its input. The bug: that the heap ends is forgotten where it is doubled.

    0 ends it, 1 appends a value to its text some times, 2 maps and unmaps memory, 3 doubles the text.
    """
    at, end = _INPUT, _HEAP + _TEXT
    while True:
        command, count, value = memory.read_bytes(at, _ITEM)
        at += _ITEM
        match command % 8:
            case 0:
                return
            case 1 if end + 16 * count <= _HEAP + _HEAP_SIZE:
                end += memory.copy_out(end, bytes([value]) * 16 * count)
            case 2:
                scratch = memory.mmap(0, (count + 2) * PAGE, _RW, _ANON)
                memory.copy_out(scratch, bytes([value]))
                memory.munmap(scratch + PAGE, PAGE)
            case 3:
                end += memory.copy_out(end, memory.read_bytes(_HEAP, end - _HEAP))
