"""Vectors in which a reader function says a wrong count: ours is gVisor's answer, or one rule explains it."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest

from vectors.adapters import read_blocks, write_blocks
from vectors.deviations import expected_answer
from vectors.recorded import OPEN, agrees, recordings
from vectors.replay import answer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the blocks that fault are made with Linux calls")

Op = dict[str, Any]


def block(data: str, **more: Any) -> Op:
    """A destination."""
    return {"hex": data, **more}


SAFE, UNSAFE = block("a1a2a3"), block("b1b2b3", unsafe=True)
FAULTY, BROKEN = block("c1c2c3", valid=2, fault="segv"), block("d1d2", valid=0, fault="bus")
SHAPES = [
    [], [SAFE], [UNSAFE], [FAULTY], [BROKEN], [SAFE, SAFE], [SAFE, UNSAFE], [UNSAFE, SAFE], [UNSAFE, block(""), UNSAFE],
    [SAFE, FAULTY], [UNSAFE, BROKEN, SAFE], [FAULTY, SAFE, UNSAFE], [SAFE, UNSAFE, FAULTY, SAFE],
]  # fmt: skip
SCRIPTS: list[list[Op]] = [
    [], [{"err": "EOF"}], [{}], [{"d": "01"}], [{"d": "0102", "err": "EOF"}], [{"d": "010203", "err": "EOF"}],
    [{"d": "010203"}, {}, {"d": "04"}], [{"d": "0102"}, {"d": "0304"}, {"d": "05", "err": "EOF"}, {"d": "06"}],
    [{"d": "01"}, {"err": "boom"}],
    [{"d": "0102030405060708090a0b0c0d"}], [{"d": "010203"}, {"d": "04", "err": "boom"}],
]  # fmt: skip


def said_counts(shape: list[Op]) -> list[int | None]:
    """What a function may say: nothing wrong, less, as much, more, more than there is room, all too much, negative."""
    room = sum(len(spec["hex"]) // 2 for spec in shape)
    return [None, 0, 1, 2, 3, room - 1, room, room + 1, (1 << 63) - 1, -1, -(1 << 63)]


def read_vec(shape: list[Op], script: list[Op], said: int | None, full: bool) -> Op:
    """A read by a function that says it read so much."""
    req: Op = {"op": "read", "via": "FromVecReaderFunc", "dst": shape, "reader": script}
    return req | ({} if said is None else {"ret": said}) | ({"full": True} if full else {})


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "+".join(spec["hex"] or "-" for spec in shape))
def test_every_wrong_count(shape: list[Op]) -> None:
    """Ours is gVisor's answer, or one rule explains it, whatever the function says and its stream does."""
    for script, said, full in itertools.product(SCRIPTS, said_counts(shape), (False, True)):
        req = read_vec(shape, script, said, full)
        expected, used = expected_answer(req, {"res": read_blocks(req)})
        assert len(used) <= 1
        assert agrees(expected, answer(req)), req


ENDING = [{"d": "0102"}, {"d": "03", "err": "EOF"}, {"d": "04"}]
# A destination, what its function says, whether it is to be filled; gVisor's answer, and what ours has instead.
WRONG_COUNTS: dict[str, tuple[list[Op], int, bool, Op, Op]] = {
    "too much, once": (
        [block("a1a2a3a4")], 3, False, {"n": 3, "err": None, "dst": ["0102a3a4"], "calls": [4], "vec": [4]}, {},
    ),
    "too much, and the stream ends with it": (
        [block("a1a2a3a4a5a6a7", unsafe=True)], 3, True,
        {"n": 6, "err": "EOF", "dst": ["010200030000a7"], "calls": [7, 4], "vec": [7, 4]}, {"err": None},
    ),
    "too little, and the stream ends with it": (
        [block("a1a2a3a4")], 1, True, {"n": 2, "err": "EOF", "dst": ["0103a3a4"], "calls": [4, 3], "vec": [4, 3]},
        {"err": None},
    ),
    "more than there is room, and the stream ends with it": (
        [block("a1"), block("b1b2b3b4")], 4, True,
        {"n": 5, "err": "EOF", "dst": ["01", "02b2b303"], "calls": [1, 4, 1], "vec": [1, 4, 1]}, {"err": None},
    ),
    "nothing": (
        [block("a1a2a3a4")], 0, True,
        {"n": 0, "err": "EOF", "dst": ["03" + "02a3a4"], "calls": [4, 4], "vec": [4, 4]},
        {"err": None, "dst": ["0102a3a4"], "calls": [4], "vec": [4]},
    ),
    "less than moved, with a block behind a fault": (
        [block("a1a2a3", valid=1, fault="segv"), block("b1b2b3")], 1, True,
        {"n": 1, "err": "SegvError", "dst": ["01", "b1b2b3"], "calls": [3, 2], "vec": [3, 2]}, {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_COUNTS.values(), ids=WRONG_COUNTS)
def test_some_wrong_counts(case: tuple[list[Op], int, bool, Op, Op]) -> None:
    """By hand: the count is what the function said, as far as there is room, also where its stream ends with it."""
    shape, said, full, recorded, differs = case
    req = read_vec(shape, ENDING, said, full)
    assert read_blocks(req) == recorded
    expected, _ = expected_answer(req, {"res": recorded})
    assert expected == {"res": {**recorded, **differs}}
    assert agrees(expected, answer(req))


@pytest.mark.parametrize("field", ["n", "err", "dst", "calls", "vec"])
def test_a_wrong_count_excuses_nothing_else(field: str) -> None:
    """What is not gVisor's answer is explained by no model of its adapters."""
    req = read_vec([UNSAFE, BROKEN, SAFE], [{"d": "0102030405060708"}], None, True)
    recorded = read_blocks(req)
    assert expected_answer(req, {"res": recorded})[1] == ["behind_fault_untouched"]
    wrong = {"n": 77, "err": "BusError" if recorded["err"] != "BusError" else "SegvError"}
    assert expected_answer(req, {"res": {**recorded, field: wrong.get(field, [])}})[1] == []


def test_the_models_of_the_adapters_are_gvisor() -> None:
    """They answer every recorded request as gVisor did."""
    checked = 0
    for recording in recordings(OPEN):
        req = recording["req"]
        if req["op"] in ("read", "write") and not req["via"].startswith("BlockSeq"):
            model = read_blocks(req) if req["op"] == "read" else write_blocks(req, gvisor=True)
            assert agrees(model, recording["res"]["res"]), req
            checked += 1
    assert checked > 800
