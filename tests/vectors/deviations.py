"""Where this library answers otherwise than gVisor, on purpose.

A rule looks at a request and the recorded answer, and says what ours must answer instead, or None if it has nothing
to say. Rules never look at our answer, and never name a case. Applied in order, each to what the one before left.
Nothing else may differ.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import iter_unpack
from typing import Any

from attrs import frozen

from vectors.adapters import read_blocks, write_blocks
from vectors.model_space import GrowingSpace, ModelSpace
from vectors.reach import Reach, accessible_prefix, past_user_space
from vectors.recorded import agrees
from vectors.replay_io import mm

Request = dict[str, Any]
Value = Any
PANIC = {"panic": "ValueError"}
_NO_RANGES = {"ars": {"empty": True, "num_bytes": 0, "num_ranges": 0, "ranges": [], "str": "[]"}, "err": "EFAULT"}


@frozen
class Rule:
    """``rewrite(request, recorded result)`` gives the result expected of us, or None."""

    name: str
    reason: str
    rewrite: Callable[[Request, Value], Value | None]


def _per_op(rewrite: Callable[[Request, Value, Reach], Value | None]) -> Callable[[Request, Value], Value | None]:
    """A rule about single operations of ``bytesio`` and ``mm``: it also learns what memory there was at that moment."""

    def rewrite_all(req: Request, value: Value) -> Value | None:
        if req["op"] not in ("bytesio", "mm"):
            return None
        reach = Reach(req)
        ops = []
        changed = False
        for op, recorded in zip(req["ops"], value["ops"], strict=True):
            expected = rewrite(op, recorded, reach)
            changed |= expected is not None
            ops.append(recorded if expected is None else expected)
            reach.apply(op, recorded)
        return {**value, "ops": ops} if changed else None

    return rewrite_all


def _per_step(rewrite: Callable[[list[Any], Value], Value | None]) -> Callable[[Request, Value], Value | None]:
    """A rule about single steps of IOSequence and IOReadWriter operations."""

    def rewrite_op(op: Request, recorded: Value, reach: Reach) -> Value | None:
        if op["fn"] not in ("IOSequence", "IOReadWriter") or not isinstance(recorded, list):
            return None
        steps = [rewrite(step, result) for step, result in zip(op["steps"], recorded, strict=True)]
        if all(step is None for step in steps):
            return None
        return [old if new is None else new for old, new in zip(recorded, steps, strict=True)]

    return _per_op(rewrite_op)


# --- drop_first(0) passes a head that take_first cut to nothing


def _drop_first_zero(req: Request, value: Value) -> Value | None:
    if req["op"] == "addrrangeseq":
        return _pass_empty_heads(req["steps"], value[0], value[1:], value[:1])
    if req["op"] not in ("bytesio", "mm"):
        return None
    changed = False
    ops = []
    for op, recorded in zip(req["ops"], value["ops"], strict=True):
        expected = None
        if op["fn"] == "IOSequence" and isinstance(recorded, list):
            expected = _pass_empty_heads(op["steps"], None, recorded, [])
        changed |= expected is not None
        ops.append(recorded if expected is None else expected)
    return {**value, "ops": ops} if changed else None


def _pass_empty_heads(steps: list[Any], state: Value, recorded: list[Any], head: list[Any]) -> list[Any] | None:
    """All states again, from the first drop(0) that left a cut head of no bytes in place."""
    out = list(head)
    gone = 0  # ranges that we have passed and the recording has not
    changed = False
    for (name, n), result in zip(steps, recorded, strict=False):
        if "num_ranges" in result:
            ours = state["num_ranges"] - gone if state else 0
            if name == "tail" and state and not ours:
                return [*out, PANIC]
            stayed = state is not None and state["num_bytes"] == 0 and result["num_ranges"] == state["num_ranges"]
            gone += name.startswith("drop") and n == 0 and stayed and ours > 0 and result["num_ranges"] >= 2
            state = result
            gone = min(gone, state["num_ranges"])
            if gone:
                changed = True
                result = _without(state, gone)
        out.append(result)
    return out if changed else None


def _without(state: Value, n: int) -> Value:
    ranges = state["ranges"][n:]
    return {
        "empty": not ranges,
        "num_bytes": state["num_bytes"],
        "num_ranges": len(ranges),
        "ranges": ranges,
        "str": "[" + " ".join(f"[{start:#x}, {end:#x})" for start, end in ranges) + "]",
    }


# --- a stream that stops before the hole is no fault


def _short_source(op: Request, recorded: Value, reach: Reach) -> Value | None:
    if op["fn"] not in ("CopyOutFrom", "CopyInTo") or recorded.get("err") != "EFAULT":
        return None
    access = "w" if op["fn"] == "CopyOutFrom" else "r"
    if recorded["n"] < accessible_prefix(reach, op, access):
        return {**recorded, "err": None}
    return None


# --- nobody is called for no bytes


def _no_empty_call(op: Request, recorded: Value, reach: Reach) -> Value | None:
    calls = {"CopyOutFrom": "reader_calls", "CopyInTo": "writer_calls"}.get(op["fn"])
    if calls is None or not recorded.get(calls) or not reach.of_bytes:
        return None
    access = "w" if op["fn"] == "CopyOutFrom" else "r"
    return {**recorded, calls: 0} if accessible_prefix(reach, op, access) == 0 else None


# --- the end of a stream is a count of 0, not an error


def _end_is_zero(req: Request, value: Value) -> Value | None:
    return {**value, "err": None} if req["op"] == "read" and value.get("err") == "EOF" else None


def _end_is_zero_op(op: Request, recorded: Value, reach: Reach) -> Value | None:
    return {**recorded, "err": None} if op["fn"] == "CopyOutFrom" and recorded.get("err") == "EOF" else None


def _end_is_zero_step(step: list[Any], result: Value) -> Value | None:
    return {**result, "err": None} if step[0] == "sread" and result.get("err") == "EOF" else None


# --- file objects give a short read now and the error at the next call


def _short_count_first(step: list[Any], result: Value) -> Value | None:
    if step[0] in ("read", "sread") and result["n"] and result["err"] in ("EFAULT", "EOF"):
        return {**result, "err": None}
    return None


# --- what lies behind a fault is not touched, and what was read for it stays pending


def _behind_fault_untouched(req: Request, value: Value) -> Value | None:
    return _read_differs(req, value, {"nothing_ends": True}, {"nothing_ends": True, "behind_fault_kept": True})


def _read_differs(req: Request, value: Value, before: dict[str, bool], after: dict[str, bool]) -> Value | None:
    """What ours must read, where the recording is what gVisor's adapter does by its description, to the letter."""
    if req["op"] != "read" or req["via"] == "BlockSeqReader":
        return None
    gvisor = read_blocks(req, **before)
    if any(value[field] != gvisor[field] for field in gvisor):
        return None
    return {**value, **read_blocks(req, **after)}


# --- a Writer is not called with nothing after its source faulted, and its short count is not the fault;
# --- a Writer that takes nothing has ended


def _write_before_fault(req: Request, value: Value) -> Value | None:
    return _write_differs(req, value) if _source_faults(req) else None


def _write_of_nothing_ends(req: Request, value: Value) -> Value | None:
    return None if _source_faults(req) else _write_differs(req, value)


def _source_faults(req: Request) -> bool:
    return any(2 * block.get("valid", 1 << 40) < len(block.get("hex") or "") for block in req.get("src") or ())


def _write_differs(req: Request, value: Value) -> Value | None:
    """What ours must write, where the recording is what gVisor's adapter does by its description, to the letter."""
    if req["op"] != "write" or req["via"] == "BlockSeqWriter":
        return None
    gvisor = write_blocks(req, gvisor=True)
    if any(value[field] != gvisor[field] for field in gvisor):
        return None
    return {**value, **write_blocks(req, gvisor=False)}


# --- a Reader that says it gave nothing has ended


def _read_of_nothing_ends(req: Request, value: Value) -> Value | None:
    return _read_differs(req, value, {}, {"nothing_ends": True})


# --- an address is the guest's word, and the worst it does is a FaultError


def _ill_formed_range(op: Request, recorded: Value, reach: Reach) -> Value | None:
    calls = {"CopyOutFrom": "reader_calls", "CopyInTo": "writer_calls"}.get(op["fn"])
    ill_formed = any((end - start) % (1 << 64) >> 63 for start, end in op.get("ranges") or ())
    if not calls or not ill_formed or (recorded["n"], recorded["err"]) != (0, "EINVAL"):
        return None
    return {**recorded, "err": "EFAULT", calls: 0}


# --- a negative count is the caller's error


def _negative_ret(req: Request, value: Value) -> Value | None:
    return PANIC if req.get("via") == "FromVecReaderFunc" and req.get("ret", 0) < 0 and value["calls"] else None


def _negative_count(op: Request, recorded: Value, reach: Reach) -> Value | None:
    count = {"ZeroOut": "n", "ZeroOutVec": "n", "CopyInIovecs": "n", "CopyInVector": "max2"}.get(op["fn"])
    if not count or op.get(count, 0) >= 0:
        return None
    nothing = not recorded.get("n") and not recorded.get("v") and not recorded.get("ars", {}).get("num_ranges")
    return PANIC if nothing else None


def _negative_count_step(step: list[Any], result: Value) -> Value | None:
    return PANIC if step[0] == "zeroout" and step[1] < 0 else None


# --- munmap(2) has Linux's errnos


def _munmap_past_user_space(op: Request, recorded: Value, reach: Reach) -> Value | None:
    if op["fn"] == "MUnmap" and recorded["err"] is None and past_user_space(op, reach.max_addr):
        return {"err": "EINVAL"}
    return None


# --- read(2), readv(2) and execve(2) have Linux's errnos


def _whole_count(op: Request, recorded: Value, reach: Reach) -> Value | None:
    if op["fn"] != "SingleIOSequence" or recorded["err"] is not None:
        return None
    return _NO_RANGES if op.get("addr", 0) + op.get("n", 0) > reach.max_addr else None


def _lengths_first(req: Request, value: Value) -> Value | None:
    """The kernel looks at all lengths before it looks at an address: what the model has there decides."""
    ops = list(value["ops"]) if req["op"] == "mm" else []
    for i, recorded in enumerate(ops):
        op = req["ops"][i]
        if op["fn"] not in ("CopyInIovecs", "IovecsIOSequence") or recorded.get("err") != "EFAULT":
            continue
        look = {"fn": "CopyIn", "addr": op.get("addr", 0), "n": 16 * op.get("n", 0)}
        table = bytes.fromhex(mm({**req, "ops": [*req["ops"][:i], look]}, ModelSpace)["ops"][-1]["data"])
        if any(length >> 63 for _, length in iter_unpack("<QQ", table[: len(table) // 16 * 16])):
            ops[i] = {**recorded, "err": "EINVAL"}
    return {**value, "ops": ops} if ops else None


def _vector_order(req: Request, value: Value) -> Value | None:
    """execve(2) reads the table first, and then the strings from the last to the first: what the model has decides."""
    ops = list(value["ops"]) if req["op"] == "mm" else []
    for i, recorded in enumerate(ops):
        op = req["ops"][i]
        if op["fn"] == "CopyInVector" and recorded.get("err") in ("EFAULT", "ENAMETOOLONG", "ENOMEM"):
            ops[i] = {**recorded, "err": _first_error(op, {**req, "ops": req["ops"][:i]})}
    return {**value, "ops": ops} if ops else None


def _first_error(op: Request, before: Request) -> str:
    def look(**what: Any) -> Any:
        return mm({**before, "ops": [*before["ops"], what]}, ModelSpace)["ops"][-1]

    pointers: list[int] = []
    left = op.get("max2", 0)
    while (word := bytes.fromhex(look(fn="CopyIn", addr=op.get("addr", 0) + 8 * len(pointers), n=8)["data"])) != bytes(
        8
    ):
        if len(word) < 8 or int.from_bytes(word, "little") > (1 << 64) - 4096:  # an errno, to the kernel
            return "EFAULT"
        if len(pointers) == left:
            return "E2BIG"
        pointers.append(int.from_bytes(word, "little"))
    for pointer in reversed(pointers):
        string = look(fn="CopyStringIn", addr=pointer, maxlen=op.get("maxlen", 0))
        if string["err"] == "EFAULT":
            return "EFAULT"
        left -= len(string["s"]) // 2 + 1
        if string["err"] or left < 0:
            return "E2BIG"
    raise AssertionError(f"{op} cannot fail")


# --- a stack grows


def _stack_grows(req: Request, value: Value) -> Value | None:
    """The same request where such mappings grow, if what is left to explain is just that here they do not."""
    if req["op"] != "mm" or not any(m.get("growsdown") for m in req.get("maps") or ()):
        return None
    if not agrees(value, mm(req, ModelSpace)):
        return None
    return {**value, "ops": _fields_of(value["ops"], mm(req, GrowingSpace)["ops"])}


def _fields_of(recorded: Value, ours: Value) -> Value:
    """Of our results the fields that were recorded. (What was not is not defined: PROTOCOL section 7, reads.)"""
    if isinstance(recorded, list):
        return [_fields_of(old, new) for old, new in zip(recorded, ours, strict=True)]
    return {field: ours[field] for field in recorded} if "panic" not in recorded else recorded


RULES = [
    Rule(
        "drop_first_zero",
        "drop_first(0) passes a head that take_first cut to nothing, as its documentation says; else copies never end",
        _drop_first_zero,
    ),
    Rule("ill_formed_range", "whatever range a guest names, the worst it does is EFAULT", _per_op(_ill_formed_range)),
    Rule("short_source", "a stream that stops before the hole is no fault (Linux)", _per_op(_short_source)),
    Rule("no_empty_call", "no Reader or Writer is called for no bytes", _per_op(_no_empty_call)),
    Rule("negative_count", "a negative count from a vector function is an error", _negative_ret),
    Rule("read_of_nothing_ends", "a Reader that says it gave nothing has ended", _read_of_nothing_ends),
    Rule(
        "behind_fault_untouched",
        "nothing behind a fault is touched: what was read for it stays pending in the Reader",
        _behind_fault_untouched,
    ),
    Rule("end_is_zero", "the end of a stream is a count of 0, not an error", _end_is_zero),
    Rule("end_is_zero", "the same, through an IO", _per_op(_end_is_zero_op)),
    Rule("end_is_zero", "the same, in a file object", _per_step(_end_is_zero_step)),
    Rule(
        "short_count_first",
        "a file object gives the short read now and the error at the next call (io.RawIOBase)",
        _per_step(_short_count_first),
    ),
    Rule(
        "write_before_fault",
        "a Writer is not called with nothing after its source faulted; its short count before the fault is no fault",
        _write_before_fault,
    ),
    Rule("write_of_nothing_ends", "a Writer that takes nothing has ended", _write_of_nothing_ends),
    Rule("negative_count", "a negative count is the caller's ValueError", _per_op(_negative_count)),
    Rule("negative_count", "the same, in an IOSequence", _per_step(_negative_count_step)),
    Rule(
        "munmap_past_user_space",
        "munmap(2) has Linux's errnos: EINVAL for a range that leaves user space",
        _per_op(_munmap_past_user_space),
    ),
    Rule("whole_count", "read(2) looks at the whole count before it is cut: EFAULT (Linux)", _per_op(_whole_count)),
    Rule(
        "lengths_first", "readv(2) looks at all lengths before it looks at an address: EINVAL (Linux)", _lengths_first
    ),
    Rule(
        "vector_order",
        "execve(2) says EFAULT, or E2BIG for what is too long, of what it meets first (Linux)",
        _vector_order,
    ),
    Rule("stack_grows", "an access below a MAP_GROWSDOWN mapping makes it grow, as in Linux", _stack_grows),
]
"""All rules, by name; a name may have several parts."""


def expected_answer(req: Request, res: Value) -> tuple[Value, list[str]]:
    """What ours must answer, and the names of the rules that made it differ from the recording."""
    if "res" not in res:
        return res, []
    value = res["res"]
    used: list[str] = []
    for rule in RULES:
        if isinstance(value, dict) and "panic" in value:
            break
        new = rule.rewrite(req, value)
        if new is not None and new != value:
            value = new
            if rule.name not in used:
                used.append(rule.name)
    return (value if value == PANIC else {"res": value}), used
