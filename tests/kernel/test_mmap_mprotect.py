"""The running kernel and an AddressSpace, given the same mapping calls, answer the same and end up with the same maps.

The calls work in a window of a child process's address space that nothing else uses. Memory is not touched, and
MAP_NORESERVE keeps the kernel's accounting from keeping apart what else it would merge.
"""

from __future__ import annotations

import errno
import json
import mmap
import random
import subprocess
import sys
from pathlib import Path

import pytest

import kernel_mappings
from hostarch import AMD64, mman
from kernel_mappings import PAGE, WINDOW, Answer, Call, window_lines
from usermem import AddressSpace

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or mmap.PAGESIZE != PAGE, reason="needs a Linux kernel with 4 KiB pages to compare with"
)

BASE = WINDOW[0] + 16 * PAGE
PAGES = 24
ANON = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_NORESERVE
FIXED = ANON | mman.MAP_FIXED
NOREPLACE = ANON | mman.MAP_FIXED_NOREPLACE
R, RW = mman.PROT_READ, mman.PROT_READ | mman.PROT_WRITE
MAX64 = (1 << 64) - 1


def kernel_answers(sequences: list[list[Call]]) -> list[list[Answer]]:
    """What the kernel says, from a process of its own."""
    script = Path(kernel_mappings.__file__)
    child = subprocess.run(
        [sys.executable, str(script)], input=json.dumps(sequences), capture_output=True, text=True, timeout=120
    )
    assert child.returncode == 0, child.stderr
    return [[(result, lines) for result, lines in answers] for answers in json.loads(child.stdout)]


def our_answers(calls: list[Call]) -> list[Answer]:
    """What an AddressSpace says."""
    space = AddressSpace()
    answers: list[Answer] = []
    for name, addr, length, prot, flags in calls:
        result: int | str
        try:
            if name == "mmap":
                result = space.mmap(addr, length, prot, flags)
                if not WINDOW[0] <= result < WINDOW[1]:
                    space.munmap(result, length)
                    result = "elsewhere"
            elif name == "munmap":
                result = space.munmap(addr, length)
            else:
                result = space.mprotect(addr, length, prot)
        except OSError as exc:
            result = errno.errorcode[exc.errno or 0]
        space._check()
        answers.append((result, window_lines(space.maps())))
    return answers


def compare(sequences: list[list[Call]]) -> None:
    """Every call of every sequence has the kernel's answer, and leaves the kernel's maps."""
    for calls, theirs in zip(sequences, kernel_answers(sequences), strict=True):
        compare_one(calls, theirs)


def compare_one(calls: list[Call], theirs: list[Answer]) -> None:
    """As :func:`compare`, for one sequence and what the kernel answered."""
    ours = our_answers(calls)
    for i, call in enumerate(calls):
        assert ours[i] == theirs[i], f"call {i}, {call}, after {calls[:i]}"


def random_call(rng: random.Random) -> Call:
    """One call in the window, mostly a sensible one."""
    addr = BASE + rng.randrange(PAGES) * PAGE + (rng.random() < 0.05)
    length = rng.choice([1, 1, 2, 3, 5, 8]) * PAGE - rng.choice([0, 0, 0, 1, PAGE - 1])
    if rng.random() < 0.05:
        length = rng.choice([0, AMD64.max_addr, MAX64, MAX64 - PAGE, 1 << 63])
    prot = rng.choice([0, R, R, RW, RW, 2, 4, 5, 7])
    name = rng.choice(["mmap", "mmap", "mmap", "munmap", "mprotect", "mprotect"])
    if name == "mprotect" and rng.random() < 0.05:
        prot = rng.choice([R | mman.PROT_SEM, 0x100, R | mman.PROT_GROWSDOWN | mman.PROT_GROWSUP])
    flags = rng.choice([FIXED, FIXED, NOREPLACE, ANON])
    if rng.random() < 0.03:
        flags = rng.choice([flags & ~mman.MAP_PRIVATE, flags | mman.MAP_SHARED, flags | mman.MAP_FIXED])
    return name, addr, length, prot, flags


def test_random_calls() -> None:
    """Sixty sequences of fifty calls."""
    rng = random.Random(2026)
    compare([[random_call(rng) for _ in range(50)] for _ in range(60)])


def test_few_pages() -> None:
    """Sequences in four pages, where almost every call splits, merges or replaces something."""
    rng = random.Random(4)
    sequences: list[list[Call]] = []
    for _ in range(150):
        calls: list[Call] = []
        for _ in range(16):
            start = rng.randrange(4)
            length = rng.randrange(1, 5 - start) * PAGE
            prot = rng.choice([R, RW])
            calls.append((rng.choice(["mmap", "munmap", "mprotect"]), BASE + start * PAGE, length, prot, FIXED))
        sequences.append(calls)
    compare(sequences)


SAMPLE: list[Call] = [("mmap", BASE, 4 * PAGE, RW, FIXED), ("mmap", BASE + 5 * PAGE, 3 * PAGE, R, FIXED)]
QUIRKS: dict[str, Call] = {
    "no length": ("mmap", 0, 0, RW, ANON),
    "length wraps to 0": ("mmap", 0, MAX64, RW, ANON),
    "as long as user space": ("mmap", 0, AMD64.max_addr, 0, ANON),
    "no type": ("mmap", BASE, PAGE, RW, mman.MAP_ANONYMOUS),
    "type of validated sharing": ("mmap", BASE, PAGE, RW, mman.MAP_ANONYMOUS | mman.MAP_SHARED_VALIDATE),
    "the place comes before the type": ("mmap", BASE, PAGE, RW, NOREPLACE & ~mman.MAP_PRIVATE),
    "shared and growing": ("mmap", 0, PAGE, RW, ANON & ~2 | mman.MAP_SHARED | mman.MAP_GROWSDOWN),
    "no file": ("mmap", 0, PAGE, RW, mman.MAP_PRIVATE),
    "no file comes before no length": ("mmap", 0, 0, RW, mman.MAP_PRIVATE),
    "fixed and not aligned": ("mmap", BASE + 1, PAGE, RW, FIXED),
    "fixed at the end": ("mmap", MAX64 + 1 - PAGE, PAGE, RW, FIXED),
    "fixed too high and not aligned": ("mmap", AMD64.max_addr + 1, PAGE, RW, NOREPLACE),
    "hint not aligned": ("mmap", BASE + 4 * PAGE + 5, PAGE, RW, ANON),
    "hint taken": ("mmap", BASE, PAGE, RW, ANON),
    "hint taken in part": ("mmap", BASE + 4 * PAGE, 2 * PAGE, RW, ANON),
    "hint in the first page": ("mmap", 0x123, PAGE, RW, ANON),
    "hint at the end": ("mmap", MAX64, PAGE, RW, ANON),
    "unknown rights of a new mapping": ("mmap", BASE + 4 * PAGE, PAGE, R | 0x100, FIXED),
    "unmap nothing": ("munmap", BASE, 0, 0, 0),
    "unmap what wraps to 0": ("munmap", BASE, MAX64, 0, 0),
    "unmap what is not there": ("munmap", BASE + 4 * PAGE, PAGE, 0, 0),
    "unmap over the top": ("munmap", AMD64.max_addr - PAGE, 2 * PAGE, 0, 0),
    "protect nothing": ("mprotect", BASE, 0, RW, 0),
    "protect nothing with unknown rights": ("mprotect", BASE, 0, 0x100, 0),
    "protect nothing, growing both ways": ("mprotect", BASE, 0, R | 0x3000000, 0),
    "protect nothing, not aligned": ("mprotect", BASE + 1, 0, R, 0),
    "unknown rights": ("mprotect", BASE, PAGE, 0x100, 0),
    "unknown rights of what is not there": ("mprotect", BASE + 4 * PAGE, PAGE, 0x100, 0),
    "unknown rights, wrapping": ("mprotect", BASE, MAX64 - PAGE, 0x100, 0),
    "protect what wraps to 0": ("mprotect", BASE, MAX64, R, 0),
    "protect up to a hole": ("mprotect", BASE + PAGE, 6 * PAGE, R, 0),
    "protect over the top": ("mprotect", AMD64.max_addr - PAGE, 2 * PAGE, R, 0),
    "growing down": ("mprotect", BASE, PAGE, R | mman.PROT_GROWSDOWN, 0),
    "growing up": ("mprotect", BASE, PAGE, R | mman.PROT_GROWSUP, 0),
    "growing what is not there": ("mprotect", BASE + 4 * PAGE, PAGE, R | mman.PROT_GROWSDOWN, 0),
}


@pytest.fixture(scope="module")
def kernel_quirks() -> dict[str, list[Answer]]:
    """What the kernel says to each of the quirks."""
    answers = kernel_answers([[*SAMPLE, call] for call in QUIRKS.values()])
    return dict(zip(QUIRKS, answers, strict=True))


@pytest.mark.parametrize("name", QUIRKS)
def test_quirks(name: str, kernel_quirks: dict[str, list[Answer]]) -> None:
    """Odd calls over two mappings with a hole between them, each with the kernel's errno or result."""
    compare_one([*SAMPLE, QUIRKS[name]], kernel_quirks[name])


def test_protecting_what_grows_down() -> None:
    """PROT_GROWSDOWN changes a mapping that grows from its start on, wherever the range starts in it."""
    growing = ("mmap", BASE, 4 * PAGE, RW, FIXED | mman.MAP_GROWSDOWN)
    compare([[growing, ("mprotect", BASE + 2 * PAGE, PAGE, R | mman.PROT_GROWSDOWN, 0)]])


def test_a_difference_is_seen() -> None:
    """The comparison fails where two sequences of calls differ."""
    calls: list[list[Call]] = [[("mmap", BASE, PAGE, RW, FIXED)], [("mmap", BASE, PAGE, R, FIXED)]]
    (rw,), (r,) = kernel_answers(calls)
    assert rw != r
    assert our_answers(calls[0]) == [rw]
    assert our_answers(calls[1]) != [rw]
