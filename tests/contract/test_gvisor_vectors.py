"""Recorded answers of gVisor itself, replayed: ``pytest tests/contract/test_gvisor_vectors.py --vectors FILE``.

Every vector must agree, but for the rules in ``tests/vectors/deviations.py``. The summary says how many of each kind
were compared and how many each rule explains.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

import pytest

from vectors.deviations import RULES, expected_answer
from vectors.recorded import HANGS, SUMMARY, agrees, recordings
from vectors.replay import answer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the blocks that fault are made with Linux calls")

_SHOWN = 10


def _kinds(req: dict[str, Any]) -> list[str]:
    """What a vector tests: its op, with fn or via; for many operations one line each."""
    if "ops" in req:
        return [f"{req['op']}: {op['fn']}" for op in req["ops"]]
    return [" ".join(filter(None, (req["op"], req.get("fn") or req.get("via"))))]


def test_recorded_answers(pytestconfig: pytest.Config) -> None:
    """All vectors of the file agree with the recording or with what a rule makes of it."""
    kinds: Counter[str] = Counter()
    rules: Counter[str] = Counter({rule.name: 0 for rule in RULES})
    wrong: list[str] = []
    total = 0
    for number, vector in enumerate(recordings(pytestconfig.getoption("--vectors")), 1):
        req = vector["req"]
        ours = answer(req)
        total += 1
        kinds.update(_kinds(req))
        if "hang" in vector["res"]:
            expected, used = _answer_of_a_hang(req), ["drop_first_zero"]
        else:
            expected, used = expected_answer(req, vector["res"])
        rules.update(used)
        if not agrees(expected, ours):
            wrong.append(f"line {number}: {json.dumps(req)}\n  expected {expected} {used}\n  ours     {ours}")
    pytestconfig.stash[SUMMARY] = [
        f"{total} vectors compared, 0 skipped, {len(wrong)} wrong",
        *(f"{count:6} {kind}" for kind, count in sorted(kinds.items())),
        "explained by a rule:",
        *(f"{count:6} {name}" for name, count in rules.items()),
    ]
    assert total, "the file has no vectors"
    assert not wrong, f"{len(wrong)} of {total} differ:\n" + "\n".join(wrong[:_SHOWN])


def _answer_of_a_hang(req: dict[str, Any]) -> dict[str, Any]:
    """What a request that never returns in gVisor must answer: the bytes that were left; a file's write says so."""
    op = req["ops"][0]
    left = sum(end - start for start, end in op["ranges"])
    results: list[dict[str, Any]] = []
    for name, n in op["steps"]:
        if name == "take":
            left = min(left, n)
            results.append({"num_bytes": left})
        elif name == "drop":
            left -= min(left, n)
            results.append({"num_bytes": left})
        else:
            results.append({"n": min(left, n), "err": None})
            if name in ("sread", "swrite"):
                if name == "swrite" and n > left:
                    results[-1]["err"] = "ErrEndOfIOSequence"
                left -= min(left, n)
                results[-1]["len"] = left
    return {"res": {"ops": [results]}}


@pytest.mark.parametrize("vector", list(recordings(HANGS)), ids=lambda v: str(v["req"]["ops"][0]["steps"]))
def test_requests_that_hang_end(vector: dict[str, Any]) -> None:
    """The requests that never return in gVisor (PROTOCOL section 10, a)."""
    assert vector["res"] == {"hang": True}
    assert agrees(_answer_of_a_hang(vector["req"]), answer(vector["req"]))


@pytest.mark.parametrize(("length", "error"), [("05", "EFAULT"), ("80", "EINVAL")])
def test_lengths_decide_before_addresses(length: str, error: str) -> None:
    """The rule asks the model what is in the table at that moment; what gVisor said of it was the first bad entry."""
    table = "0000000000000080" + "0500000000000000" + "00" * 8 + "00" * 7 + length
    mapped = {"addr": 0x10000, "len": 4096, "perms": "rw"}
    write = {"fn": "CopyOut", "addr": 0x10010, "src": table}
    req = {"op": "mm", "maps": [mapped], "ops": [write, {"fn": "CopyInIovecs", "addr": 0x10010, "n": 2}]}
    none = {"empty": True, "num_bytes": 0, "num_ranges": 0, "ranges": [], "str": "[]"}
    recorded = {"res": {"ops": [{"n": 32, "err": None}, {"ars": none, "err": "EFAULT"}]}}
    expected, _ = expected_answer(req, recorded)
    assert expected["res"]["ops"][1]["err"] == error
    assert agrees(expected, answer(req))


def test_a_broken_answer_is_seen() -> None:
    """The comparison fails where it should."""
    recorded = {"res": {"n": 3, "err": None, "data": ["61"]}}
    assert agrees(recorded, {"res": {"n": 3, "err": None, "data": ["61"], "more": 1}})
    for ours in (
        {"panic": "x"},
        {"res": {"n": 4, "err": None, "data": ["61"]}},
        {"res": {"n": 3, "data": ["61"]}},
        {"res": {"n": True, "err": None, "data": ["61"]}},
        {"res": {"n": 3, "err": None, "data": ["61", "62"]}},
    ):
        assert not agrees(recorded, ours)
