"""The rows of ``copy``: one copy through the public API against a raw slice of the same kind of memory."""

from __future__ import annotations

import importlib
import itertools
import mmap
from collections.abc import Iterator
from struct import Struct
from typing import Any

from attrs import frozen
from timing import Run, loop

from hostarch import AddrRange, AddrRangeSeq, mman
from usermem import AddressSpace, copy_in_vec, copy_string_in, copy_uint32_in

_RW = mman.PROT_READ | mman.PROT_WRITE
_ANON = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS
_SIZE = 4 << 20


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
    uc = _unicorn(addr, data)
    a, b, at = 5000, 5064, addr + 5000
    base = {"mm": mm, "space": space, "a": a, "b": b, "at": at, "uc": uc}

    def row(
        name: str, ours: str, floor: str, bar: float, peer: str = "", peer_bar: float = 0.0, **names: object
    ) -> Row:
        names = {**base, **names}
        peers = {"unicorn": loop(peer, names)} if peer and uc is not None else {}
        return Row(name, loop(ours, names), loop(floor, names), bar, peers, {"unicorn": peer_bar} if peers else {})

    src, ba = data[:64], bytearray(64)
    yield row("read_bytes 64 B", "space.read_bytes(at, 64)", "mm[a:b]", 3.2, "uc.mem_read(at, 64)", 4.5)
    yield row(
        "copy_out 64 B bytes", "space.copy_out(at, src)", "mm[a:b] = src", 3.6, "uc.mem_write(at, src)", 2.8, src=src
    )
    yield row("copy_out 64 B bytearray", "space.copy_out(at, src)", "mm[a:b] = src", 7.0, src=bytearray(src))
    yield row("copy_in 64 B memoryview", "space.copy_in(at, dst)", "dst[:] = mm[a:b]", 3.0, dst=memoryview(ba))
    yield row("copy_in 64 B bytearray", "space.copy_in(at, dst)", "dst[:] = mm[a:b]", 4.4, dst=ba)
    u32: dict[str, Any] = {"unpack_from": Struct("<I").unpack_from, "unpack": Struct("<I").unpack}
    floor = "unpack_from(mm, a)"
    peer = "unpack(uc.mem_read(at, 4))"
    yield row("u32 method", "space.copy_uint32_in(at)", floor, 2.6, peer, 8.0, **u32)
    yield row("u32 function", "copy_uint32_in(space, at)", floor, 3.6, peer, 0.0, copy_uint32_in=copy_uint32_in, **u32)

    for n, peer_bar in ((20, 0.0), (300, 15.0)):
        where = 1 << 20
        text = b"x" * n + b"\0"
        mm[where : where + n + 1] = text
        space.copy_out(addr + where, text)
        if uc is not None:
            uc.mem_write(addr + where, text)
        yield row(
            f"string {n} B",
            "copy_string_in(space, at, 4096)",
            "mm[a:mm.find(zero, a, a + 4096)]",
            2.5,
            "chunked(uc, at, 4096)",
            peer_bar,
            copy_string_in=copy_string_in,
            chunked=_chunked_string,
            zero=b"\0",
            a=where,
            at=addr + where,
        )

    starts = [4096 * (2 * i + 1) + 100 for i in range(16)]
    ars = AddrRangeSeq([AddrRange(addr + s, addr + s + 64) for s in starts])
    yield row(
        "copy_in_vec 16x64 B",
        "copy_in_vec(space, ars, dst)",
        "dst[:] = join([mm[s:s + 64] for s in starts])",
        3.0,
        "join([read(s, 64) for s in peer_starts])",
        6.0,
        copy_in_vec=copy_in_vec,
        ars=ars,
        dst=bytearray(16 * 64),
        join=b"".join,
        starts=starts,
        peer_starts=[addr + s for s in starts],
        read=getattr(uc, "mem_read", None),
    )

    mib = 1 << 20
    big = bytearray(data[:mib])
    names: dict[str, Any] = {"size": mib, "a": a, "b": a + mib, "src": bytes(big)}
    yield row("read_bytes 1 MiB", "space.read_bytes(at, size)", "mm[a:b]", 1.08, "uc.mem_read(at, size)", 0.0, **names)
    yield row("copy_out 1 MiB", "space.copy_out(at, src)", "mm[a:b] = src", 1.08, **names)
    names["dst"] = memoryview(big)
    names["view"] = memoryview(mm)
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


def _unicorn(addr: int, data: bytes) -> Any:
    """A Unicorn engine with the same memory, if unicorn is installed."""
    try:
        unicorn: Any = importlib.import_module("unicorn")
    except ImportError:
        return None
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    uc.mem_map(addr, len(data))
    uc.mem_write(addr, data)
    return uc


def _chunked_string(uc: Any, addr: int, maxlen: int) -> bytes:
    """How one reads a string through mem_read, which has no call for it."""
    found = bytearray()
    while len(found) < maxlen:
        chunk = uc.mem_read(addr + len(found), 64)
        end = chunk.find(0)
        if end >= 0:
            return bytes(found + chunk[:end])
        found += chunk
    return bytes(found)
