"""futex(2): FutexTable and the running kernel answer the same, and wake the same who wait, step by step."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import Any

import pytest

import kernel_futex
from kernel_futex import CMP_REQUEUE, OUTSIDE, PLACES, REQUEUE, WAKE, WAKE_BITSET, WAKE_OP, KernelFutex, OurFutex

pytestmark = pytest.mark.skipif(not kernel_futex.page_of_the_host(), reason="compares with x86-64 Linux and its pages")

Step = list[Any]
ANY = 0xFFFF_FFFF


def run(side: KernelFutex | OurFutex, steps: list[Step]) -> list[Any]:
    """The answers to all steps; a place is named, with an offset, or is a number."""

    def at(place: list[Any] | int) -> int:
        return place if isinstance(place, int) else side.places[place[0]] + place[1]

    answers: list[Any] = []
    for kind, *args in steps:
        if kind == "store":
            side.store(at(args[0]), args[1])
        elif kind == "load":
            answers.append(side.load(at(args[0])))
        elif kind == "wait":
            name, place, val, bitset, private = args
            answers.append(side.wait(name, at(place), val, bitset, private))
        elif kind == "call":
            op, place, val, val2, other, val3, private = args
            answers.append(side.call(op, at(place), val, val2, at(other), val3, private))
        else:
            answers.append(side.finish())
    return answers


def by_the_kernel(steps: list[Step]) -> list[Any]:
    """The kernel's answers, in a process of their own: its threads wait in futexes."""
    child = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(steps),
        capture_output=True,
        text=True,
        timeout=240,
        env={"PYTHONPATH": ":".join(sys.path), "PATH": ""},
    )
    assert child.returncode == 0, child.stderr
    answers: list[Any] = json.loads(child.stdout)
    return answers


def check(steps: list[Step]) -> list[Any]:
    """Both give the same answers, which are returned."""
    ours = OurFutex()
    ours.prepare()
    found = run(ours, steps)
    assert found == by_the_kernel(steps)
    return found


def call(
    op: int, place: Any, val: int = 1, val2: int = 0, other: Any = ("shared", 0), val3: int = 0, private: bool = False
) -> Step:
    """A call's step."""
    return ["call", op, place, val, val2, other, val3, private]


def test_errors() -> None:
    """Every call at every kind of place, private and not: unaligned, outside, no rights, wrong values, bad numbers."""
    places: list[Any] = [[name, offset] for name in PLACES for offset in (0, 1, 2)] + list(OUTSIDE)
    steps: list[Step] = []
    for place in places:
        for private in (False, True):
            steps += [["wait", "x", place, 1, bitset, private] for bitset in (ANY, 0)]  # the word is 0
            steps += [call(WAKE, place, private=private), call(WAKE_BITSET, place, private=private)]
            steps += [call(REQUEUE, place, n, m, private=private) for n, m in ((0, 0), (-1, 1), (1, -1))]
            steps += [call(REQUEUE, ["shared", 0], 1, 1, place, private=private)]
            steps += [call(CMP_REQUEUE, place, 1, 1, val3=val, private=private) for val in (0, 7)]
            steps += [call(CMP_REQUEUE, ["shared", 0], 1, 1, place, 7, private=private)]
            steps += [call(WAKE_OP, place, 1, 1, ["shared", 0], op, private=private) for op in (0, 5 << 28, 9 << 24)]
            steps += [call(WAKE_OP, ["shared", 0], 1, 1, place, 0, private=private)]
    found = check(steps)
    assert {"EINVAL", "EFAULT", "EAGAIN", "ENOSYS", 0} <= set(found)


@pytest.mark.parametrize("waits", PLACES[:-2])
def test_who_meets_whom(waits: str) -> None:
    """A waiter at each place, private or not, is woken from those places whose key is the same, and no other."""
    steps: list[Step] = []
    for mine in (False, True):
        for theirs in (False, True):
            for wakes in PLACES[:-2]:
                steps += [["wait", "a", [waits, 0], 0, ANY, mine], call(WAKE, [wakes, 0], 9, private=theirs)]
                steps += [call(WAKE, [wakes, 4], 9, private=theirs), ["finish"]]
    check(steps)


def test_counts_orders_and_bitsets() -> None:
    """The first come are woken first, one at least; bitsets choose; those who were requeued come last."""
    word, other = ["private", 0], ["shared", 4]
    four: list[Step] = [
        ["wait", name, word, 0, bits, False] for name, bits in (("a", 1), ("b", 6), ("c", ANY), ("d", 8))
    ]
    steps: list[Step] = []
    for n in (0, 1, 2, 9, -1, 0x7FFF_FFFF):
        steps += [*four, call(WAKE, word, n), ["finish"]]
    for bits in (1, 2, 8, 16, 10, 0xFFFF_0000):
        steps += [*four, call(WAKE_BITSET, word, 9, val3=bits), call(WAKE_BITSET, word, 1, val3=8), ["finish"]]
    for op in (REQUEUE, CMP_REQUEUE):
        for n, m in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 9), (2, 1), (9, 9), (0, 9)):
            for to in (other, word, ["private", 4]):
                steps += [["wait", "z", to, 0, ANY, False], *four, call(op, word, n, m, to)]
                steps += [call(WAKE, to, 1), call(WAKE, word, 1), call(WAKE_BITSET, to, 9, val3=8), ["finish"]]
    steps += [*four, call(CMP_REQUEUE, word, 1, 9, other, 7), call(WAKE, other, 9), ["finish"]]
    check(steps)


def test_wake_op() -> None:
    """All operations and comparisons, with shifts and negative arguments: counts, who is woken, and the word."""
    word, other = ["private", 0], ["shared", 4]
    choice = random.Random(1)
    steps: list[Step] = []
    for kind in range(6):
        for comparison in range(7):
            for _ in range(2):
                value = choice.choice([0, 1, 5, 0xFFFF_FFFF, 0x8000_0000])
                argument, compared = choice.choice([1, 5, 31, 0xFFF]), choice.choice([0, 1, 5, 0xFFF])
                shift = choice.choice([0, 8]) if argument < 32 else 0
                op = (kind | shift) << 28 | comparison << 24 | argument << 12 | compared
                steps += [["store", other, 0], ["wait", "a", word, 0, ANY, False], ["wait", "b", other, 0, ANY, False]]
                steps += [["store", other, value], call(WAKE_OP, word, 1, 1, other, op), ["load", other]]
                steps += [["finish"]]
    check(steps)


def test_random_steps() -> None:
    """Waits, wakes and requeues at random between a few words."""
    choice = random.Random(7)
    words = [["private", 0], ["private", 4], ["shared", 0], ["file", 0], ["alias", 0]]
    steps: list[Step] = []
    for _ in range(60):
        names = iter("abcdef")
        for name in names:
            steps.append(["wait", name, choice.choice(words), 0, choice.choice([ANY, 1, 2, 3]), False])
            op = choice.choice([WAKE, WAKE_BITSET, REQUEUE, CMP_REQUEUE])
            n, m, bits = choice.randrange(3), choice.randrange(3), choice.choice([1, 2, 4])
            val3 = bits if op == WAKE_BITSET else 0
            steps.append(call(op, choice.choice(words), n, m, choice.choice(words), val3))
        steps.append(["finish"])
    check(steps)


def _main() -> None:
    kernel = KernelFutex()
    kernel.prepare()
    print(json.dumps(run(kernel, json.loads(sys.stdin.read()))))


if __name__ == "__main__":
    _main()
