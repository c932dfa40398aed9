"""The rows of ``copy``: one copy through the public API against a raw slice of the same kind of memory."""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Iterator
from struct import Struct
from typing import Any

from attrs import frozen

import peers
from hostarch import AddrRange, AddrRangeSeq, mman
from timing import Run, loop
from usermem import AddressSpace, copy_in_vec, copy_string_in, copy_uint32_in

_RW = mman.PROT_READ | mman.PROT_WRITE
_ANON = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS
_SIZE = 4 << 20

Rivals = dict[str, tuple[str, float]]
"""For a peer, the statement that does the same there, and how many times its time must be ours at least."""


@frozen
class Row:
    """One measurement: ``ours`` may take at most ``bar`` times the floor, and must beat each peer by its bar."""

    name: str
    ours: Run
    floor: Run
    bar: float
    peers: dict[str, Run]
    peer_bars: dict[str, float]


def rows() -> Iterator[Row]:
    """All rows; the address space of each lives as long as the row does."""
    mm = mmap.mmap(-1, _SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    space = AddressSpace()
    addr = space.mmap(0, _SIZE, _RW, _ANON)
    data = bytes(1 + i % 255 for i in range(_SIZE))
    mm[:] = data
    space.copy_out(addr, data)
    engines = {"unicorn": peers.unicorn(addr, data), "qiling": peers.qiling(addr, data)}
    a, b, at = 5000, 5064, addr + 5000
    base = {"mm": mm, "space": space, "a": a, "b": b, "at": at, "uc": engines["unicorn"], "ql": engines["qiling"]}

    def row(name: str, ours: str, floor: str, bar: float, rivals: Rivals | None = None, **more: Any) -> Row:
        names = {**base, **more}
        there = {peer: rival for peer, rival in (rivals or {}).items() if engines[peer] is not None}
        return Row(
            name,
            loop(ours, names),
            loop(floor, names),
            bar,
            {peer: loop(statement, names) for peer, (statement, _) in there.items()},
            {peer: peer_bar for peer, (_, peer_bar) in there.items()},
        )

    src, ba = data[:64], bytearray(64)
    rivals = {"unicorn": ("uc.mem_read(at, 64)", 4.5), "qiling": ("ql.mem.read(at, 64)", 0.0)}
    yield row("read_bytes 64 B", "space.read_bytes(at, 64)", "mm[a:b]", 3.2, rivals)
    rivals = {"unicorn": ("uc.mem_write(at, src)", 2.8), "qiling": ("ql.mem.write(at, src)", 0.0)}
    yield row("copy_out 64 B bytes", "space.copy_out(at, src)", "mm[a:b] = src", 3.6, rivals, src=src)
    yield row("copy_out 64 B bytearray", "space.copy_out(at, src)", "mm[a:b] = src", 7.0, src=bytearray(src))
    yield row("copy_in 64 B memoryview", "space.copy_in(at, dst)", "dst[:] = mm[a:b]", 3.0, dst=memoryview(ba))
    yield row("copy_in 64 B bytearray", "space.copy_in(at, dst)", "dst[:] = mm[a:b]", 4.4, dst=ba)

    u32: dict[str, Any] = {"unpack_from": Struct("<I").unpack_from, "unpack": Struct("<I").unpack}
    u32["copy_uint32_in"] = copy_uint32_in
    rivals = {"unicorn": ("unpack(uc.mem_read(at, 4))", 8.0), "qiling": ("ql.mem.read_ptr(at, 4)", 0.0)}
    yield row("u32 method", "space.copy_uint32_in(at)", "unpack_from(mm, a)", 2.6, rivals, **u32)
    yield row("u32 function", "copy_uint32_in(space, at)", "unpack_from(mm, a)", 3.6, **u32)

    for n, peer_bar in ((20, 0.0), (300, 15.0)):
        where = 1 << 20
        text = b"x" * n + b"\0"
        mm[where : where + n + 1] = text
        space.copy_out(addr + where, text)
        if engines["unicorn"] is not None:
            engines["unicorn"].mem_write(addr + where, text)
        if engines["qiling"] is not None:
            engines["qiling"].mem.write(addr + where, text)
        yield row(
            f"string {n} B",
            "copy_string_in(space, at, 4096)",
            "mm[a:mm.find(zero, a, a + 4096)]",
            2.5,
            {"unicorn": ("chunked(uc, at, 4096)", peer_bar), "qiling": ("ql.mem.string(at)", 0.0)},
            copy_string_in=copy_string_in,
            chunked=peers.unicorn_string,
            zero=b"\0",
            a=where,
            at=addr + where,
        )

    starts = [4096 * (2 * i + 1) + 100 for i in range(16)]
    yield row(
        "copy_in_vec 16x64 B",
        "copy_in_vec(space, ars, dst)",
        "dst[:] = join([mm[s:s + 64] for s in starts])",
        3.0,
        {"unicorn": ("join([uc.mem_read(s, 64) for s in peer_starts])", 6.0)},
        copy_in_vec=copy_in_vec,
        ars=AddrRangeSeq([AddrRange(addr + s, addr + s + 64) for s in starts]),
        dst=bytearray(16 * 64),
        join=b"".join,
        starts=starts,
        peer_starts=[addr + s for s in starts],
    )

    size = 1 << 20
    big = bytearray(data[:size])
    names: dict[str, Any] = {"size": size, "a": a, "b": a + size, "src": bytes(big)}
    rivals = {"unicorn": ("uc.mem_read(at, size)", 0.0), "qiling": ("ql.mem.read(at, size)", 0.0)}
    yield row("read_bytes 1 MiB", "space.read_bytes(at, size)", "mm[a:b]", 1.08, rivals, **names)
    yield row("copy_out 1 MiB", "space.copy_out(at, src)", "mm[a:b] = src", 1.08, **names)
    names |= {"dst": memoryview(big), "view": memoryview(mm)}
    yield row("copy_in 1 MiB memoryview", "space.copy_in(at, dst)", "dst[:] = view[a:b]", 1.08, **names)

    many = AddressSpace()
    # A page of hole after each: neighbours with equal rights would be one mapping.
    places = [many.mmap(0x1000_0000 + 0x4000 * i, 0x3000, _RW, _ANON | mman.MAP_FIXED) for i in range(100)]
    for place in places:
        many.copy_out(place, src)
    yield row(
        "alternating 2 of 100 maps",
        "read(next(two), 64)",
        "read(next(one), 64)",
        1.15,
        read=many.read_bytes,
        two=itertools.cycle([places[10], places[90]]),
        one=itertools.cycle([places[10], places[10]]),
    )
