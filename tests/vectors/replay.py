"""Replays a recorded request on this library and answers in the shape of the recording.

A request names the kind of test in ``op``; each has a function here. Where the recorded shape is Go's (a value beside
"not ok", an error beside a count), this file translates; it never corrects. In one place it adds something: where a
rule lets a MUnmap of ours fail that gVisor's did in part, the part is unmapped for the operations after it.
"""

from __future__ import annotations

import mmap
import signal
from collections.abc import Callable
from typing import Any

from hostarch import AccessType, Addr, AddrRange, AddrRangeSeq
from safemem import (
    AlignmentError,
    Block,
    BlockSeq,
    BlockSeqReader,
    BlockSeqWriter,
    EndOfBlockSeqError,
    FromIOReader,
    FromIOWriter,
    FromVecReaderFunc,
    FromVecWriterFunc,
    HostFaultError,
    Reader,
    Writer,
    atomics,
    copy,
    copy_seq,
    read_full_to_blocks,
    write_full_from_blocks,
    zero_seq,
)
from usermem.testing.faulty_memory import FaultyMemory
from vectors.script import Boom, ScriptReader, ScriptWriter, VecReader

Request = dict[str, Any]
PANIC = {"panic": "raised"}
_MASK = (1 << 64) - 1


def answer(req: Request) -> Any:
    """Our answer to a request, as ``{"res": …}`` or ``{"panic": …}``."""
    from vectors.replay_io import bytesio, mm

    ops: dict[str, Callable[[Request], Any]] = {
        "addr": _addr,
        "range": _range,
        "access": _access,
        "addrrangeseq": _addrrangeseq,
        "blockseq": _blockseq,
        "copy": _copy,
        "copyseq": _copyseq,
        "zeroseq": _zeroseq,
        "atomic": _atomic,
        "read": _read,
        "write": _write,
        "bytesio": bytesio,
        "mm": mm,
    }
    try:
        return {"res": ops[req["op"]](req)}
    except (ValueError, OverflowError, IndexError):
        return PANIC


def error_name(exc: BaseException) -> str:
    """The recorded name of an error."""
    import errno

    if isinstance(exc, HostFaultError):
        return "BusError" if exc.signo == signal.SIGBUS else "SegvError"
    if isinstance(exc, AlignmentError):
        return "AlignmentError"
    if isinstance(exc, EndOfBlockSeqError):
        return "ErrEndOfBlockSeq"
    if isinstance(exc, Boom):
        return str(exc)
    if isinstance(exc, OSError) and exc.errno:
        return errno.errorcode[exc.errno]
    raise exc


def counted(call: Callable[[], int]) -> dict[str, Any]:
    """``{n, err}`` of a call that returns a count or raises one with ``transferred``."""
    try:
        return {"n": call(), "err": None}
    except (OSError, Boom) as exc:
        return {"n": getattr(exc, "transferred", 0), "err": error_name(exc)}


def _addr(req: Request) -> Any:
    addr = Addr(req.get("v", 0))
    length = req.get("len", 0)

    def pair(value: int | None, otherwise: int) -> dict[str, Any]:
        return {"ok": value is not None, "v": int(otherwise if value is None else value)}

    def go_range(ar: AddrRange | None) -> list[int]:
        # Where there is no range, Go gives the one whose end wrapped.
        return [ar.start, ar.end] if ar else [int(addr), int(addr.wrapping_add(length))]

    functions: dict[str, Callable[[], Any]] = {
        "AddLength": lambda: pair(addr.checked_add_length(length), addr.wrapping_add(length)),
        "ToRange": lambda: {
            "ok": addr.checked_to_range(length) is not None,
            "v": go_range(addr.checked_to_range(length)),
        },
        "MustToRange": lambda: go_range(addr.to_range(length)),
        "RoundDown": lambda: int(addr.round_down()),
        "RoundUp": lambda: pair(addr.checked_round_up(), 0),
        "MustRoundUp": lambda: int(addr.round_up()),
        "HugeRoundDown": lambda: int(addr.huge_round_down()),
        "HugeRoundUp": lambda: pair(addr.checked_huge_round_up(), 0),
        "MustHugeRoundUp": lambda: int(addr.huge_round_up()),
        "PageOffset": addr.page_offset,
        "HugePageOffset": addr.huge_page_offset,
        "IsPageAligned": addr.is_page_aligned,
        "IsHugePageAligned": addr.is_huge_page_aligned,
        "ToPagesRoundUp": lambda: pair(addr.checked_to_pages_round_up(), addr),
        "CacheLineRoundDown": lambda: int(addr.cache_line_round_down()),
        "CacheLineRoundUp": lambda: pair(addr.checked_cache_line_round_up(), 0),
        "MustCacheLineRoundUp": lambda: int(addr.cache_line_round_up()),
        "UntaggedUserAddr": lambda: int(addr.untagged()),
    }
    return functions[req["fn"]]()


def _range(req: Request) -> Any:
    a = AddrRange(*req["a"])
    b = AddrRange(*(req.get("b") or (0, 0)))
    v = req.get("v", 0)

    def intersection() -> list[int]:
        ar = a.intersect(b)
        return [ar.start, ar.end]

    functions: dict[str, Callable[[], Any]] = {
        "WellFormed": a.well_formed,
        "Length": lambda: a.length,
        "Contains": lambda: a.contains(v),
        "Overlaps": lambda: a.overlaps(b),
        "IsSupersetOf": lambda: a.is_superset_of(b),
        "Intersect": intersection,
        "CanSplitAt": lambda: a.can_split_at(v),
        "IsPageAligned": a.is_page_aligned,
        "IsHugePageAligned": a.is_huge_page_aligned,
        "String": lambda: str(a),
    }
    return functions[req["fn"]]()


def access_type(letters: str) -> AccessType:
    """The access type of some of the letters r, w, x."""
    return AccessType(sum(1 << "rwx".index(letter) for letter in letters))


def _access(req: Request) -> Any:
    p, q = access_type(req.get("p", "")), access_type(req.get("q", ""))
    return {
        "str": str(p),
        "any": p.any(),
        "prot": p.prot(),
        "superset": p.superset_of(q),
        "intersect": str(p.intersect(q)),
        "union": str(p.union(q)),
        "effective": str(p.effective()),
    }


def address_ranges(req: Request) -> AddrRangeSeq:
    """The sequence that ``ranges`` and ``of`` describe."""
    ranges = [AddrRange(*r) for r in req.get("ranges") or ()]
    return AddrRangeSeq.of(ranges[0]) if req.get("of") else AddrRangeSeq(ranges)


def ars_state(ars: AddrRangeSeq) -> dict[str, Any]:
    """A state of an address range sequence."""
    return {
        "num_ranges": len(ars),
        "num_bytes": ars.num_bytes,
        "empty": ars.is_empty(),
        "ranges": [[ar.start, ar.end] for ar in ars],
        "str": str(ars),
    }


def _addrrangeseq(req: Request) -> Any:
    ars = address_ranges(req)
    states = [ars_state(ars)]
    for name, n in req.get("steps", ()):
        try:
            if name == "tail":
                ars = ars.tail()
                states.append(ars_state(ars))
                continue
            ars = ars.drop_first(n) if name.startswith("drop") else ars.take_first(n)
        except (ValueError, IndexError):
            return [*states, PANIC]
        states.append(ars_state(ars))
    return states


class Memory:
    """The blocks of a request, on real memory, and what is in them afterwards."""

    def __init__(self, specs: list[dict[str, Any]] | None) -> None:
        self.blocks: list[Block] = []
        self._contents: list[Callable[[], bytes]] = []
        for spec in specs or ():
            self._add(spec)

    def _add(self, spec: dict[str, Any]) -> None:
        data = bytes.fromhex(spec.get("hex") or "")
        if "valid" in spec:
            valid = spec["valid"]
            faulty = FaultyMemory(spec["fault"])
            self.blocks.append(faulty.block(len(data), valid, data))
            self._contents.append(lambda: faulty.before_edge(valid))
            return
        host = mmap.mmap(-1, mmap.PAGESIZE)
        host[: len(data)] = data
        block = Block(host).take_first(len(data))
        if spec.get("unsafe"):
            block = Block.from_address(block.address, len(data), host)
        self.blocks.append(block)
        self._contents.append(lambda: host[: len(data)])

    def seq(self) -> BlockSeq:
        """The blocks as a sequence."""
        return BlockSeq(self.blocks)

    def contents(self) -> list[str]:
        """The blocks' bytes, up to where they fault."""
        return [content().hex() for content in self._contents]


def _blockseq(req: Request) -> Any:
    seq = Memory(req.get("blocks")).seq()

    def state() -> dict[str, Any]:
        return {
            "num_blocks": len(seq),
            "num_bytes": seq.num_bytes,
            "empty": seq.is_empty(),
            "blocks": [{"hex": b.tobytes().hex(), "unsafe": b.need_safecopy} for b in seq],
        }

    states = [state()]
    for name, n in req.get("steps", ()):
        if name.endswith("64"):
            n &= _MASK  # these two take an unsigned number
        try:
            if name == "tail":
                seq = seq.tail()
            elif name.startswith("drop"):
                seq = seq.drop_first(n)
            else:
                seq = seq.take_first(n)
        except (ValueError, IndexError):
            return [*states, PANIC]
        states.append(state())
    return states


def _copy(req: Request) -> Any:
    dst, src = Memory(req["dst"]), Memory(req["src"])
    return {**counted(lambda: copy(dst.blocks[0], src.blocks[0])), "dst": dst.contents()}


def _copyseq(req: Request) -> Any:
    dst, src = Memory(req.get("dst")), Memory(req.get("src"))
    return {**counted(lambda: copy_seq(dst.seq(), src.seq())), "dst": dst.contents()}


def _zeroseq(req: Request) -> Any:
    dst = Memory(req.get("dst"))
    return {**counted(lambda: zero_seq(dst.seq())), "dst": dst.contents()}


def _atomic(req: Request) -> Any:
    dst = Memory(req["dst"])
    block = dst.blocks[0].drop_first(req.get("v", 0))
    old, new = req.get("old", 0), req.get("new", 0)
    calls: dict[str, Callable[[], int]] = {
        "SwapUint32": lambda: atomics.swap_uint32(block, new),
        "SwapUint64": lambda: atomics.swap_uint64(block, new),
        "CompareAndSwapUint32": lambda: atomics.compare_and_swap_uint32(block, old, new),
        "LoadUint32": lambda: atomics.load_uint32(block),
    }
    try:
        result: dict[str, Any] = {"v": calls[req["fn"]](), "err": None}
    except OSError as exc:
        result = {"err": error_name(exc)}
    return {**result, "dst": dst.contents()}


def _read(req: Request) -> Any:
    dst, src = Memory(req.get("dst")), Memory(req.get("src"))
    script = ScriptReader(req.get("reader") or [])
    vec = VecReader(script, req.get("ret"))
    readers: dict[str, Callable[[], Reader]] = {
        "FromIOReader": lambda: FromIOReader(script),
        "BlockSeqReader": lambda: BlockSeqReader(src.seq()),
        "FromVecReaderFunc": lambda: FromVecReaderFunc(vec),
    }
    reader = readers[req["via"]]()
    call = read_full_to_blocks if req.get("full") else lambda reader, dsts: reader.read_to_blocks(dsts)
    return {**counted(lambda: call(reader, dst.seq())), "dst": dst.contents(), "calls": script.calls, "vec": vec.vec}


def _write(req: Request) -> Any:
    dst, src = Memory(req.get("dst")), Memory(req.get("src"))
    script = ScriptWriter(req.get("writer") or [])
    writers: dict[str, Callable[[], Writer]] = {
        "FromIOWriter": lambda: FromIOWriter(script),
        "BlockSeqWriter": lambda: BlockSeqWriter(dst.seq()),
        "FromVecWriterFunc": lambda: FromVecWriterFunc(script.write_vec),
    }
    writer = writers[req["via"]]()
    call = write_full_from_blocks if req.get("full") else lambda writer, srcs: writer.write_from_blocks(srcs)
    result = counted(lambda: call(writer, src.seq()))
    return {**result, "dst": dst.contents(), "got": script.got.hex(), "calls": script.calls}
