"""Replays the operations of ``bytesio`` and ``mm`` requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import evolve, frozen

from hostarch import AMD64, WRITE, AddrRangeSeq, Arch, mman
from safemem import FromIOReader, FromIOWriter, ReaderFunc, WriterFunc
from usermem import (
    IO,
    AddressSpace,
    BytesIO,
    FaultError,
    InvalidIntegerError,
    IOReadWriter,
    IOSequence,
    IOSequenceReadWriter,
    NameTooLongError,
    check_io_range,
    copy_in_iovecs,
    copy_in_vec,
    copy_in_vector,
    copy_int32_string_in_vec,
    copy_int32_strings_in_vec,
    copy_out_iovecs,
    copy_out_vec,
    copy_string_in,
    iovecs_io_sequence,
    single_io_sequence,
    zero_out_vec,
)
from vectors.reach import past_user_space
from vectors.replay import PANIC, access_type, address_ranges, ars_state, counted, error_name
from vectors.script import ScriptReader, ScriptWriter

Op = dict[str, Any]


def bytesio(req: dict[str, Any]) -> Any:
    """All operations on BytesIO over ``mem``."""
    memory = bytearray.fromhex(req.get("mem") or "")
    io = BytesIO(memory)
    return {"ops": [_run(io, op, COMMON) for op in req["ops"]], "mem": memory.hex()}


def mm(req: dict[str, Any], space_type: Callable[[Arch], Any] | None = None) -> Any:
    """All operations on an AddressSpace with ``maps``, or on another kind of space."""
    arch = evolve(AMD64, min_addr=req.get("min", AMD64.min_addr), max_addr=req.get("max", AMD64.max_addr))
    with (space_type or AddressSpace)(arch) as space:
        for m in req.get("maps") or ():
            _map(space, m)
        return {"ops": [_run(space, op, COMMON | MM_ONLY) for op in req["ops"]]}


@frozen
class _File:
    content: bytes

    def size(self) -> int:
        return len(self.content)

    def read_at(self, offset: int, dst: memoryview) -> int:
        data = self.content[offset : offset + len(dst)]
        dst[: len(data)] = data
        return len(data)


def _map(space: AddressSpace, m: dict[str, Any]) -> None:
    flags = mman.MAP_FIXED | mman.MAP_ANONYMOUS | (mman.MAP_SHARED if m.get("shared") else mman.MAP_PRIVATE)
    if m.get("growsdown"):
        flags |= mman.MAP_GROWSDOWN
    size = m.get("file_size", m["len"])
    data = bytearray.fromhex(m.get("file_hex") or "")
    data += bytes(size - len(data))
    stored = bytes.fromhex(m.get("hex") or "")
    if stored and "max" in m:
        # Not even ignoring permissions may it be written through the mapping: it is in the object.
        end = m.get("off", 0) + len(stored)
        data += bytes(max(0, end - len(data)))
        data[m.get("off", 0) : end] = stored
        stored = b""
    mapped = _File(bytes(data)) if "file_size" in m or "max" in m else None
    max_prot = access_type(m.get("max", "rwx"))
    space.map_object(m["addr"], m["len"], access_type(m.get("perms", "")), flags, mapped, 0, max_prot)
    if stored:
        space.copy_out(m["addr"] + m.get("off", 0), stored, ignore_permissions=True)


def _run(io: IO, op: Op, functions: dict[str, Callable[[Any, Op, bool], Any]]) -> Any:
    try:
        return functions[op["fn"]](io, op, bool(op.get("ignore")))
    except (ValueError, OverflowError):
        return PANIC


def _copy_in(io: IO, op: Op, ignored: bool) -> Any:
    dst = bytearray(op.get("n", 0))
    result = counted(lambda: io.copy_in(op.get("addr", 0), dst, ignore_permissions=ignored))
    return {**result, "data": dst[: result["n"]].hex()}


def _copy_out_from(io: IO, op: Op, ignored: bool) -> Any:
    script = ScriptReader(op.get("reader") or [])
    inner = FromIOReader(script)
    calls: list[int] = []

    def read_to_blocks(dsts: Any) -> int:
        calls.append(dsts.num_bytes)
        return inner.read_to_blocks(dsts)

    result = counted(
        lambda: io.copy_out_from(address_ranges(op), ReaderFunc(read_to_blocks), ignore_permissions=ignored)
    )
    return {**result, "reader_calls": len(calls), "reads": script.calls}


def _copy_in_to(io: IO, op: Op, ignored: bool) -> Any:
    script = ScriptWriter(op.get("writer") or [])
    inner = FromIOWriter(script)
    calls: list[int] = []

    def write_from_blocks(srcs: Any) -> int:
        calls.append(srcs.num_bytes)
        return inner.write_from_blocks(srcs)

    result = counted(
        lambda: io.copy_in_to(address_ranges(op), WriterFunc(write_from_blocks), ignore_permissions=ignored)
    )
    return {**result, "writer_calls": len(calls), "got": script.got.hex()}


def _atomic(call: Callable[[], int]) -> Any:
    try:
        return {"v": call(), "err": None}
    except FaultError as exc:
        return {"v": 0, "err": error_name(exc)}


def _copy_string_in(io: IO, op: Op, ignored: bool) -> Any:
    try:
        return {
            "s": copy_string_in(io, op.get("addr", 0), op.get("maxlen", 0), ignore_permissions=ignored).hex(),
            "err": None,
        }
    except (FaultError, NameTooLongError) as exc:
        return {"s": exc.partial.hex(), "err": error_name(exc)}


def _copy_in_vec(io: IO, op: Op, ignored: bool) -> Any:
    dst = bytearray(op.get("n", 0))
    result = counted(lambda: copy_in_vec(io, address_ranges(op), dst, ignore_permissions=ignored))
    return {**result, "data": dst[: result["n"]].hex()}


def _parse(call: Callable[[], tuple[int, list[int]]], dsts: list[int]) -> dict[str, Any]:
    err = None
    try:
        n, values = call()
    except InvalidIntegerError as exc:
        n, values, err = exc.consumed, exc.values, error_name(exc)
    except FaultError as exc:
        (n, values), err = exc.partial, error_name(exc)
    return {"n": n, "err": err, "dsts": values + dsts[len(values) :]}


def _int32_strings(io: IO, op: Op, ignored: bool) -> Any:
    initial = op.get("initial") or []
    return _parse(
        lambda: copy_int32_strings_in_vec(io, address_ranges(op), len(initial), ignore_permissions=ignored),
        initial,
    )


def _int32_string(io: IO, op: Op, ignored: bool) -> Any:
    def one() -> tuple[int, list[int]]:
        n, value = copy_int32_string_in_vec(io, address_ranges(op), ignore_permissions=ignored)
        return n, [value]

    result = _parse(one, op["initial"])
    return {"n": result["n"], "err": result["err"], "dst": result["dsts"][0]}


def _pattern(first: int, n: int) -> bytes:
    return bytes(first + i % 26 for i in range(n))


def _read_step(file: IOReadWriter | IOSequenceReadWriter, n: int) -> dict[str, Any]:
    dst = bytearray(n)
    result = counted(lambda: file.readinto(dst) or 0)
    return {**result, "data": dst[: result["n"]].hex()}


def _write_step(file: IOReadWriter | IOSequenceReadWriter, data: bytes) -> dict[str, Any]:
    result = counted(lambda: file.write(data))
    if result["err"] == "ENOSPC":
        result["err"] = "ErrEndOfIOSequence"
    return {**result, "data": data[: result["n"]].hex()}


def _io_read_writer(io: IO, op: Op, ignored: bool) -> Any:
    file = IOReadWriter(io, op.get("addr", 0), ignore_permissions=ignored)
    results = []
    for name, n in op["steps"]:
        result = _read_step(file, n) if name == "read" else _write_step(file, _pattern(0x41, n))
        results.append({**result, "addr": file.addr})
    return results


def _io_sequence(io: IO, op: Op, ignored: bool) -> Any:
    seq = IOSequence(io, address_ranges(op), ignore_permissions=ignored)
    file: IOSequenceReadWriter | None = None
    results: list[Any] = []
    for name, n in op["steps"]:
        if name in ("drop", "take"):
            seq = seq.drop_first(n) if name == "drop" else seq.take_first(n)
            results.append(ars_state(seq.addrs))
        elif name == "copyin":
            dst = bytearray(n)
            result = counted(lambda seq=seq, dst=dst: seq.copy_in(dst))  # type: ignore[misc]
            results.append({**result, "data": dst[: result["n"]].hex()})
        elif name == "copyout":
            results.append(counted(lambda seq=seq, n=n: seq.copy_out(_pattern(0x61, n))))  # type: ignore[misc]
        elif name == "zeroout":
            try:
                results.append(counted(lambda seq=seq, n=n: seq.zero_out(n)))  # type: ignore[misc]
            except ValueError:
                results.append(PANIC)
        else:
            file = file or seq.reader()
            result = _read_step(file, n) if name == "sread" else _write_step(file, _pattern(0x61, n))
            results.append({**result, "len": file.num_bytes})
    return results


def _check_io_range(space: AddressSpace, op: Op, ignored: bool) -> Any:
    addr, n = op.get("addr", 0), op.get("n", 0)
    try:
        ar = check_io_range(addr, n, space.arch)
    except FaultError:
        # Where there is no range, Go gives the one whose end wrapped.
        return {"ok": False, "v": [addr, (addr + n) % (1 << 64)]}
    return {"ok": True, "v": [ar.start, ar.end]}


def _ensure_pmas_exist(space: AddressSpace, op: Op, ignored: bool) -> Any:
    addr, n = op.get("addr", 0), op["n"] % (1 << 64)
    if space.range_fault(addr, n, WRITE):
        return {"n": 0, "err": "EFAULT"}
    blocks, fault = space.resolve(addr, n, WRITE, ignore_permissions=ignored)
    return {"n": sum(map(len, blocks)), "err": None if fault is None else "EFAULT"}


def _munmap(space: AddressSpace, op: Op, ignored: bool) -> Any:
    addr, length = op.get("addr", 0), op.get("len", 0)
    result = _errno(lambda: space.munmap(addr, length))
    if past_user_space(op, space.arch.max_addr) and addr < space.arch.max_addr:
        # See the rule munmap_past_user_space: gVisor unmaps what is inside, and later operations depend on it.
        space.munmap(addr, space.arch.max_addr - addr)
    return result


def _errno(call: Callable[[], object]) -> Any:
    try:
        call()
    except OSError as exc:
        return {"err": error_name(exc)}
    return {"err": None}


def _copy_in_vector(space: AddressSpace, op: Op, ignored: bool) -> Any:
    err = None
    try:
        strings = copy_in_vector(space, op.get("addr", 0), op.get("maxlen", 0), op.get("max2", 0))
    except OSError as exc:
        strings, err = getattr(exc, "partial", []), error_name(exc)
    return {"v": [s.hex() for s in strings], "nil": not strings, "err": err}


def _sequence(call: Callable[[], AddrRangeSeq]) -> Any:
    try:
        return {"ars": ars_state(call()), "err": None}
    except OSError as exc:
        return {"ars": ars_state(AddrRangeSeq()), "err": error_name(exc)}


COMMON: dict[str, Callable[[Any, Op, bool], Any]] = {
    "CopyOut": lambda io, op, ignored: counted(
        lambda: io.copy_out(op.get("addr", 0), bytes.fromhex(op.get("src") or ""), ignore_permissions=ignored)
    ),
    "CopyIn": _copy_in,
    "ZeroOut": lambda io, op, ignored: counted(
        lambda: io.zero_out(op.get("addr", 0), op.get("n", 0), ignore_permissions=ignored)
    ),
    "CopyOutFrom": _copy_out_from,
    "CopyInTo": _copy_in_to,
    "SwapUint32": lambda io, op, ignored: _atomic(
        lambda: io.swap_uint32(op.get("addr", 0), op.get("new", 0), ignore_permissions=ignored)
    ),
    "CompareAndSwapUint32": lambda io, op, ignored: _atomic(
        lambda: io.compare_and_swap_uint32(
            op.get("addr", 0), op.get("old", 0), op.get("new", 0), ignore_permissions=ignored
        )
    ),
    "LoadUint32": lambda io, op, ignored: _atomic(
        lambda: io.load_uint32(op.get("addr", 0), ignore_permissions=ignored)
    ),
    "CopyStringIn": _copy_string_in,
    "CopyOutVec": lambda io, op, ignored: counted(
        lambda: copy_out_vec(io, address_ranges(op), bytes.fromhex(op.get("src") or ""), ignore_permissions=ignored)
    ),
    "CopyInVec": _copy_in_vec,
    "ZeroOutVec": lambda io, op, ignored: counted(
        lambda: zero_out_vec(io, address_ranges(op), op.get("n", 0), ignore_permissions=ignored)
    ),
    "CopyInt32StringsInVec": _int32_strings,
    "CopyInt32StringInVec": _int32_string,
    "IOReadWriter": _io_read_writer,
    "IOSequence": _io_sequence,
}

MM_ONLY: dict[str, Callable[[Any, Op, bool], Any]] = {
    "CheckIORange": _check_io_range,
    "EnsurePMAsExist": _ensure_pmas_exist,
    "MProtect": lambda space, op, ignored: _errno(
        lambda: space.mprotect(op.get("addr", 0), op.get("len", 0), access_type(op.get("perms", "")))
    ),
    "MUnmap": _munmap,
    "CopyInVector": _copy_in_vector,
    "CopyInIovecs": lambda space, op, ignored: _sequence(
        lambda: copy_in_iovecs(space, op.get("addr", 0), op.get("n", 0))
    ),
    "CopyOutIovecs": lambda space, op, ignored: _errno(
        lambda: copy_out_iovecs(space, op.get("addr", 0), address_ranges(op))
    ),
    "SingleIOSequence": lambda space, op, ignored: _sequence(
        lambda: single_io_sequence(space, op.get("addr", 0), op.get("n", 0)).addrs
    ),
    "IovecsIOSequence": lambda space, op, ignored: _sequence(
        lambda: iovecs_io_sequence(space, op.get("addr", 0), op.get("n", 0)).addrs
    ),
}
