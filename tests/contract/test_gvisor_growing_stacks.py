"""Vectors made by hand in which a stack grows, as in Linux, where gVisor answers EFAULT; and where it must not."""

from __future__ import annotations

import random
import sys
from copy import deepcopy
from typing import Any

import pytest

from vectors.deviations import expected_answer
from vectors.model_space import ModelSpace
from vectors.recorded import agrees
from vectors.replay import answer
from vectors.replay_io import mm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the blocks that fault are made with Linux calls")

PAGE = 0x1000
STACK = 0x2000000
TOP = STACK + 2 * PAGE
LOWEST = TOP - (8 << 20)  # RLIMIT_STACK
GUARD = 256 * PAGE

Op = dict[str, Any]
Case = tuple[list[Op], list[tuple[Op, Any, Any]]]


def mapped(addr: int, perms: str = "rw", **more: Any) -> Op:
    """A map of one page."""
    return {"addr": addr, "len": PAGE, "perms": perms, **more}


def stack(perms: str = "rw", **more: Any) -> Op:
    """A map of two pages that grows down."""
    return {"addr": STACK, "len": 2 * PAGE, "perms": perms, "growsdown": True, **more}


def read(addr: int, n: int = 1, **more: Any) -> Op:
    """A CopyIn."""
    return {"fn": "CopyIn", "addr": addr, "n": n, **more}


def write(addr: int, data: str = "61", **more: Any) -> Op:
    """A CopyOut."""
    return {"fn": "CopyOut", "addr": addr, "src": data, **more}


def got(data: str, err: str | None = None) -> Op:
    """The answer to a CopyIn."""
    return {"n": len(data) // 2, "err": err, "data": data}


def put(n: int, err: str | None = None) -> Op:
    """The answer to a CopyOut."""
    return {"n": n, "err": err}


def protect(addr: int, pages: int = 1, perms: str = "rw") -> Op:
    """An MProtect."""
    return {"fn": "MProtect", "addr": addr, "len": pages * PAGE, "perms": perms}


def over(fn: str, *ranges: list[int], **more: Any) -> Op:
    """An operation on ranges."""
    return {"fn": fn, "ranges": list(ranges), **more}


OK, ENOMEM = {"err": None}, {"err": "ENOMEM"}
BELOW = STACK - 2
NO_RANGES = {"num_ranges": 0, "num_bytes": 0, "empty": True, "ranges": [], "str": "[]"}

# What is mapped, and the operations, each with gVisor's answer and ours.
GROWS: dict[str, Case] = {
    "write over its start, then read": (
        [stack()],
        [
            (write(BELOW, "61626364"), put(0, "EFAULT"), put(4)),
            (read(STACK - 3, 6), got("", "EFAULT"), got("006162636400")),
            (read(STACK, 2), got("0000"), got("6364")),
        ],
    ),
    "read what lies below": ([stack(hex="78", off=0)], [(read(BELOW, 3), got("", "EFAULT"), got("000078"))]),
    "all pages up to it": (
        [stack()],
        [
            (read(STACK - 9 * PAGE), got("", "EFAULT"), got("00")),
            (protect(STACK - 9 * PAGE, 11, "r"), ENOMEM, OK),
            (write(STACK, ""), put(0), put(0)),
            (write(STACK), put(1), put(0, "EFAULT")),
        ],
    ),
    "although the access is denied": (
        [stack("r")],
        [(write(BELOW), put(0, "EFAULT"), put(0, "EFAULT")), (protect(STACK - PAGE), ENOMEM, OK)],
    ),
    "with the rights of what it grows from": (
        [stack()],
        [
            (protect(STACK, 1, "r"), OK, OK),
            (read(BELOW), got("", "EFAULT"), got("00")),
            (write(BELOW), put(0, "EFAULT"), put(0, "EFAULT")),
            (write(BELOW, ignore=True), put(0, "EFAULT"), put(1)),
        ],
    ),
    "ignoring permissions": ([stack("")], [(read(BELOW, 3, ignore=True), got("", "EFAULT"), got("000000"))]),
    "as far as RLIMIT_STACK": (
        [stack()],
        [(read(LOWEST - 1), got("", "EFAULT"), got("", "EFAULT")), (read(LOWEST), got("", "EFAULT"), got("00"))],
    ),
    "up to the guard": (
        [mapped(STACK - GUARD - 3 * PAGE), stack()],
        [
            (read(STACK - 2 * PAGE - 1), got("", "EFAULT"), got("", "EFAULT")),
            (read(STACK - 2 * PAGE), got("", "EFAULT"), got("00")),
        ],
    ),
    "up to what has no rights": (
        [mapped(STACK - 2 * PAGE, ""), stack()],
        [(write(BELOW), put(0, "EFAULT"), put(1)), (read(STACK - 2 * PAGE), got("", "EFAULT"), got("", "EFAULT"))],
    ),
    "up to another stack": (
        [mapped(STACK - 2 * PAGE, "rw", growsdown=True), stack()],
        [(write(STACK - PAGE - 1, "6162"), put(1, "EFAULT"), put(2))],
    ),
    "again, with zeros, where it was unmapped": (
        [stack(hex="78", off=PAGE)],
        [
            (write(STACK), put(1), put(1)),
            ({"fn": "MUnmap", "addr": STACK, "len": PAGE}, OK, OK),
            (read(STACK, PAGE + 1), got("", "EFAULT"), got("00" * PAGE + "78")),
        ],
    ),
    "for a stream that ends": (
        [stack()],
        [
            (
                over("CopyOutFrom", [BELOW, STACK], [STACK, STACK + 3], reader=[{"d": "616263", "err": "EOF"}]),
                {"n": 0, "err": "EFAULT", "reader_calls": 0, "reads": []},
                {"n": 3, "err": None, "reader_calls": 1, "reads": [2, 3]},
            ),
            (
                over("CopyInTo", [BELOW, STACK], [TOP - 1, TOP + 1], writer=[{"n": 9}]),
                {"n": 0, "err": "EFAULT", "got": "", "writer_calls": 0},
                {"n": 3, "err": "EFAULT", "got": "616200", "writer_calls": 1},
            ),
            (
                over("CopyOutFrom", [STACK, STACK + 3], reader=[{"d": "61", "err": "EOF"}]),
                {"n": 1, "err": "EOF", "reader_calls": 1, "reads": [3]},
                {"n": 1, "err": None, "reader_calls": 1, "reads": [3]},
            ),
        ],
    ),
    "for a range over a page's end, where the reads are not defined": (
        [stack()],
        [
            (
                over("CopyOutFrom", [BELOW, STACK + 2], reader=[{"d": "61626364"}]),
                {"n": 0, "err": "EFAULT", "reader_calls": 0},
                {"n": 4, "err": None, "reader_calls": 1},
            ),
        ],
    ),
    "for every kind of operation": (
        [stack(hex="3432203433", off=0)],
        [
            (
                over("CopyInt32StringsInVec", [STACK - 1, STACK + 5], initial=[1, 1]),
                {"n": 0, "err": "EFAULT", "dsts": [1, 1]},
                {"err": "EINVAL"},
            ),
            (
                {"fn": "CopyInVector", "addr": BELOW - 2 * PAGE, "maxlen": 9, "max2": 9},
                {"v": [], "nil": True, "err": "EFAULT"},
                {"err": None},
            ),
            ({"fn": "CopyStringIn", "addr": BELOW - 3 * PAGE, "maxlen": 9}, {"s": "", "err": "EFAULT"}, {"err": None}),
            ({"fn": "EnsurePMAsExist", "addr": BELOW - 4 * PAGE, "n": 9}, put(0, "EFAULT"), put(9)),
            ({"fn": "ZeroOut", "addr": BELOW - 5 * PAGE, "n": 9}, put(0, "EFAULT"), put(9)),
            (over("CopyOutVec", [BELOW - 6 * PAGE, STACK], src="61"), put(0, "EFAULT"), put(1)),
            ({"fn": "SwapUint32", "addr": STACK - 9 * PAGE, "new": 7}, {"v": 0, "err": "EFAULT"}, {"err": None}),
            ({"fn": "LoadUint32", "addr": STACK - 9 * PAGE}, {"v": 0, "err": "EFAULT"}, {"v": 7, "err": None}),
            (
                {"fn": "CopyInIovecs", "addr": STACK - 10 * PAGE, "n": 1},
                {"ars": NO_RANGES, "err": "EFAULT"},
                {
                    "ars": {"num_ranges": 1, "num_bytes": 0, "empty": False, "ranges": [[0, 0]], "str": "[[0x0, 0x0)]"},
                    "err": None,
                },
            ),
            ({"fn": "CopyOutIovecs", "addr": STACK - 11 * PAGE, "ranges": [[1, 3]]}, {"err": "EFAULT"}, OK),
            (
                over("IOSequence", [STACK - 12 * PAGE, STACK], steps=[["sread", 2], ["copyout", 1]]),
                [got("", "EFAULT") | {"len": 12 * PAGE}, put(0, "EFAULT")],
                [got("0000") | {"len": 12 * PAGE - 2}, put(1)],
            ),
        ],
    ),
}

STAYS: dict[str, Case] = {
    "an atomic of a misaligned word": (
        [stack()],
        [
            ({"fn": "SwapUint32", "addr": BELOW, "new": 7}, {"v": 0, "err": "EFAULT"}, 0),
            (protect(STACK - PAGE), ENOMEM, 0),
        ],
    ),
    "above it": ([stack()], [(read(TOP), got("", "EFAULT"), 0)]),
    "longer than RLIMIT_STACK": ([stack()], [(read(LOWEST - 1), got("", "EFAULT"), 0)]),
    "into the guard": ([mapped(STACK - 2 * PAGE), stack()], [(read(BELOW), got("", "EFAULT"), 0)]),
    "over another mapping": (
        [mapped(STACK - GUARD - PAGE, ""), stack()],
        [(read(STACK - GUARD - PAGE - 1), got("", "EFAULT"), 0)],
    ),
    "no bytes": ([stack()], [(read(BELOW, 0), got(""), 0)]),
    "what leaves user space": (
        [stack(), mapped(0x7FFFFFFFE000, growsdown=True)],
        [(read(0x7FFFFFFFDFFF, 2 * PAGE), got("", "EFAULT"), 0)],
    ),
    "what only looks so": ([stack() | {"growsdown": False}], [(read(BELOW), got("", "EFAULT"), 0)]),
}


def vector(case: Case) -> tuple[Op, Op, Op]:
    """A request, gVisor's answer, and ours; a difference of 0 is none, one of some fields is in those."""
    maps, ops = case
    ours = [old if not new else new if isinstance(new, list) else {**old, **new} for _, old, new in ops]
    req = {"op": "mm", "maps": maps, "ops": [op for op, _, _ in ops]}
    return req, {"res": {"ops": [old for _, old, _ in ops]}}, {"res": {"ops": ours}}


@pytest.mark.parametrize("case", GROWS.values(), ids=GROWS)
def test_stacks_that_grow(case: Case) -> None:
    """The rule says what ours must answer, later operations too, and ours does."""
    req, recorded, ours = vector(case)
    expected, used = expected_answer(req, recorded)
    assert expected == ours
    assert "stack_grows" in used and set(used) <= {"stack_grows", "end_is_zero"}
    assert agrees(expected, answer(req))


@pytest.mark.parametrize("case", STAYS.values(), ids=STAYS)
def test_stacks_that_do_not_grow(case: Case) -> None:
    """Where Linux's stacks do not grow there is nothing to explain, and ours do not."""
    req, recorded, _ = vector(case)
    assert expected_answer(req, recorded) == (recorded, [])
    assert agrees(recorded, answer(req))


def test_no_stack_grows_below_min_addr() -> None:
    """``min`` is vm.mmap_min_addr."""
    maps = [mapped(0x12000, growsdown=True)]
    req = {"op": "mm", "maps": maps, "min": 0x11000, "ops": [read(0x10FFF), read(0x11000)]}
    recorded = {"res": {"ops": [got("", "EFAULT")] * 2}}
    expected, used = expected_answer(req, recorded)
    assert (expected, used) == ({"res": {"ops": [got("", "EFAULT"), got("00")]}}, ["stack_grows"])
    assert agrees(expected, answer(req))


@pytest.mark.parametrize("case", GROWS.values(), ids=GROWS)
def test_a_growing_stack_excuses_nothing_else(case: Case) -> None:
    """An answer that is not gVisor's, in any one operation, is not explained."""
    req, recorded, _ = vector(case)
    for i, result in enumerate(recorded["res"]["ops"]):
        for field in result if isinstance(result, dict) else ():
            wrong = deepcopy(recorded)
            wrong["res"]["ops"][i][field] = {"err": "EINVAL"}.get(field, 77)
            assert "stack_grows" not in expected_answer(req, wrong)[1]


def test_stacks_at_random() -> None:
    """Accesses and changes around stacks: ours is what the model of Linux's growth says."""
    rng = random.Random(11)
    grew = 0
    for _ in range(400):
        maps = _random_maps(rng)
        ops: list[Op] = []
        for _ in range(rng.randint(2, 8)):
            addr = rng.choice(maps)["addr"] - PAGE * rng.choice([0, 0, 0, 1, 2, 255, 256, 257, 2046, 2047])
            addr += rng.choice([-3, -1, 0, 1])
            page, pages = addr - addr % PAGE, rng.randint(1, 3)
            unmap = {"fn": "MUnmap", "addr": page, "len": pages * PAGE}
            accesses = [read(addr, 5), write(addr, "6162636465"), {"fn": "LoadUint32", "addr": addr}]
            ops.append(rng.choice([*accesses * 2, protect(page, pages, rng.choice(["r", "rw", ""])), unmap]))
        req = {"op": "mm", "maps": maps, "ops": ops}
        expected, used = expected_answer(req, {"res": mm(req, ModelSpace)})
        grew += used == ["stack_grows"]
        assert agrees(expected, answer(req)), req
    assert grew > 100


def _random_maps(rng: random.Random) -> list[Op]:
    maps: list[Op] = []
    addr = STACK
    for _ in range(rng.randint(1, 3)):
        pages = rng.randint(1, 3)
        maps.append({"addr": addr, "len": pages * PAGE, "perms": rng.choice(["rw", "rw", "r", ""])})
        maps[-1]["growsdown"] = rng.random() < 0.7
        addr += PAGE * (pages + rng.choice([0, 1, 4, 255, 256, 257, 300]))
    return maps
