"""What gVisor's stream adapters do by their description, and what ours do instead: models, for the rules alone.

Each takes a ``read`` or ``write`` request and gives the fields of its answer. Without a flag they are gVisor.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from attrs import frozen

Request = dict[str, Any]
Result = tuple[int, str | None]


@frozen
class _Block:
    content: bytearray
    valid: int
    unsafe: bool
    fault: str

    def put(self, at: int, data: bytes) -> Result:
        """Write data at an offset, up to where the block faults."""
        n = max(min(len(data), self.valid - at), 0)
        self.content[at : at + n] = data[:n]
        return n, None if n == len(data) else self.fault


def _blocks(specs: list[dict[str, Any]] | None) -> list[_Block]:
    out = []
    for spec in specs or ():
        content = bytearray.fromhex(spec.get("hex") or "")
        unsafe = bool(spec.get("unsafe")) or "valid" in spec
        fault = "BusError" if spec.get("fault") == "bus" else "SegvError"
        out.append(_Block(content, spec.get("valid", len(content)), unsafe, fault))
    return out


def _rest(blocks: list[_Block], done: int) -> list[tuple[_Block, int]]:
    """The blocks behind the first ``done`` bytes, each with the offset where it goes on."""
    out = []
    for block in blocks:
        if done < len(block.content):
            out.append((block, done))
        done = max(done - len(block.content), 0)
    return out


class _Script:
    """The scripted reader. ``calls`` are the sizes of its Reads."""

    def __init__(self, entries: list[dict[str, Any]] | None) -> None:
        self._entries = [(bytes.fromhex(e.get("d") or ""), e.get("err")) for e in entries or ()]
        self.calls: list[int] = []

    def read(self, size: int) -> tuple[bytes, str | None]:
        """One Read, which may give bytes and an error."""
        self.calls.append(size)
        if not self._entries:
            return b"", "EOF"
        data, err = self._entries.pop(0)
        if size < len(data):
            self._entries.insert(0, (data[size:], err))
            return data[:size], None
        return data, err


def read_blocks(req: Request, *, nothing_ends: bool = False, behind_fault_kept: bool = False) -> dict[str, Any]:
    """FromIOReader or FromVecReaderFunc, once or until the blocks are full.

    ``nothing_ends``: a call that says it gave nothing, without an error, was the last. ``behind_fault_kept``: a call
    that meets a fault has not touched the blocks behind it.
    """
    script = _Script(req.get("reader"))
    blocks = _blocks(req.get("dst"))
    done = 0
    err: str | None = None
    while rest := _rest(blocks, done):
        if req["via"] == "FromIOReader":
            n, err = _read_each(rest, script)
        else:
            n, err = _read_vec(rest, script, req.get("ret"), behind_fault_kept)
        done += n
        if err or not req.get("full") or (nothing_ends and not n):
            break
    vec = script.calls if req["via"] == "FromVecReaderFunc" else []
    dst = [block.content[: block.valid].hex() for block in blocks]
    return {"n": done, "err": err, "dst": dst, "calls": script.calls, "vec": vec}


def _read_each(rest: list[tuple[_Block, int]], script: _Script) -> Result:
    done = 0
    for i, (block, at) in enumerate(rest):
        size = len(block.content) - at
        data, err = script.read(size)
        n, fault = block.put(at, data)
        done += n
        if fault or n < size:
            return done, fault or err
        if err:
            return done, None if err == "EOF" and i == len(rest) - 1 else err
    return done, None


def _read_vec(rest: list[tuple[_Block, int]], script: _Script, said: int | None, behind_fault_kept: bool) -> Result:
    """One call of the function: what it says counts (a negative count is a large one), as far as there is room."""
    before = [bytes(block.content) for block, _ in rest]
    buffers = [bytearray(len(block.content) - at) for block, at in rest]
    moved = 0
    err: str | None = None
    for (block, at), buffer in zip(rest, buffers, strict=True):
        data, err = script.read(len(buffer))
        buffer[: len(data)] = data
        if not block.unsafe:
            block.put(at, data)
        moved += len(data)
        if err or len(data) < len(buffer):
            break
    left = (moved if said is None else said) % (1 << 64)
    done = 0
    for i, ((block, at), buffer) in enumerate(zip(rest, buffers, strict=True)):
        taken = bytes(buffer[:left])
        n, fault = block.put(at, taken) if block.unsafe else (len(taken), None)
        done += n
        left -= len(taken)
        if fault:
            for (behind, _), content in list(zip(rest, before, strict=True))[i + 1 :] * behind_fault_kept:
                behind.content[:] = content
            return done, fault
    return done, err


def write_blocks(req: Request, *, gvisor: bool) -> dict[str, Any]:
    """FromIOWriter or FromVecWriterFunc on a scripted writer, once or until all is written: gVisor's way, or ours."""
    entries = deepcopy(req.get("writer") or [])
    blocks = [(bytes.fromhex(b.get("hex") or ""), b.get("valid"), b.get("fault")) for b in req.get("src") or ()]
    blocks = [block for block in blocks if block[0]]
    got = b""
    calls: list[int] = []
    err: str | None = None
    while blocks:
        before = len(got)
        fault = next((_fault_name(b) for b in blocks if _readable(b) != b[0]), None)
        err = None
        for block in blocks:
            part = _readable(block)
            short = False
            if part or gvisor:
                entry: dict[str, Any] = entries.pop(0) if entries else {"n": len(part)}
                n = min(entry.get("n", 0), len(part))
                calls.append(len(part))
                got += part[:n]
                err = entry.get("err")
                short = n < len(part)
            if err:
                break
            if short:
                # gVisor's vector function has met the fault before it writes at all, its writer only in that block.
                met = req["via"] == "FromVecWriterFunc" or part != block[0]
                err = fault if gvisor and met else None
                break
            if part != block[0]:
                err = fault
                break
        moved = len(got) - before
        if err or not req.get("full") or not (moved or gvisor):
            break
        while moved:
            data, valid, kind = blocks.pop(0)
            if moved < len(data):
                blocks.insert(0, (data[moved:], None if valid is None else max(0, valid - moved), kind))
                break
            moved -= len(data)
    return {"n": len(got), "err": err, "got": got.hex(), "calls": calls}


def _readable(block: tuple[bytes, int | None, str | None]) -> bytes:
    return block[0] if block[1] is None else block[0][: block[1]]


def _fault_name(block: tuple[bytes, int | None, str | None]) -> str:
    return "BusError" if block[2] == "bus" else "SegvError"
