"""The rows of ``syscall`` that need more than the guest: TLS, and changes of mappings."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from before import usermem_before
from hostarch import mman
from safemem import Block, BlockSeq, FromIOReader, FromIOWriter, write_full_from_blocks
from safemem.tls import SUITES, EngineError, TLSReader, TLSWriter, TrafficSecret
from syscall_guest import ANON, RW, Names
from syscall_row import Row, row, runs
from timing import Prepared
from usermem import AddressSpace, copy_in_iovecs

_PAGE = 4096
_BASE = 0x1000_0000
_FIXED = ANON | mman.MAP_FIXED


def tls_rows(known: Names) -> Iterator[Row]:
    """64 KiB of TLS records into 16 pages with holes between; each turn has a reader over the same records."""
    secret, wire = TrafficSecret(SUITES["TLS_AES_128_GCM_SHA256"], bytes(32), 0), io.BytesIO()
    try:
        write_full_from_blocks(TLSWriter(FromIOWriter(wire), secret), BlockSeq.of(Block(bytes(64 * 65536))))
    except EngineError as exc:
        print(f"{exc}: TLS is left out")
        return

    reader: list[TLSReader] = []
    ars = copy_in_iovecs(known["s"], known["iov16"], 16)
    used = known | {"reader": reader, "buffer": memoryview(bytearray(65536)), "ars16": ars, "pairs": list(ars.pairs())}

    def prepare(n: int) -> None:
        reader[:] = [TLSReader(FromIOReader(io.BytesIO(wire.getvalue())), secret)]

    raw = "reader[0].read_to_blocks(BlockSeq.of(Block(buffer)))"
    statements = {
        "ours": "s.copy_out_from(ars16, reader[0])",
        "naive": f"{raw}; naive_scatter(s, pairs, buffer)",
        "raw": raw,
    }
    prepared = {who: Prepared(run, prepare) for who, run in runs(used, statements).items()}
    yield Row("TLS into 16 pages", "naive", 1.1, prepared)


def mapping_rows(known: Names) -> Iterator[Row]:
    """mmap, munmap and mprotect against Unicorn's; mprotect in a heap of 64 MiB with many pages cached and with one."""
    case = partial(row, known | {"free": _BASE << 4, "page": known["b"] + 0x10000})
    yield case(
        "mmap, munmap 8 KiB",
        "unicorn",
        0.55,
        ours="s.munmap(s.mmap(0, 8192, RW, ANON), 8192)",
        unicorn="uc.mem_map(free, 8192); uc.mem_unmap(free, 8192)",
        raw="mmap(-1, 8192).close()",
        qiling="ql.mem.map(free, 8192); ql.mem.unmap(free, 8192)",
    )
    yield case(
        "mmap, touch, munmap 8 KiB",
        "unicorn",
        1.0,
        ours="a = s.mmap(0, 8192, RW, ANON); s.copy_out(a, b64); s.munmap(a, 8192)",
        unicorn="uc.mem_map(free, 8192); uc.mem_write(free, b64); uc.mem_unmap(free, 8192)",
        raw="m = mmap(-1, 8192); m[0:64] = b64; m.close()",
    )
    yield case(
        "mprotect there and back",
        "unicorn",
        1.6,
        ours="s.mprotect(page, 4096, R); s.mprotect(page, 4096, RW)",
        unicorn="uc.mem_protect(page, 4096, R); uc.mem_protect(page, 4096, RW)",
        qiling="ql.mem.protect(page, 4096, R); ql.mem.protect(page, 4096, RW)",
    )
    middle = 2048
    case = partial(row, known | {"many": _heap(range(4096)), "few": _heap([middle]), "page": _BASE + middle * _PAGE})
    yield case(
        "mprotect, 4,096 pages cached",
        "without",
        1.5,
        ours="many.mprotect(page, 4096, R); many.mprotect(page, 4096, RW)",
        without="few.mprotect(page, 4096, R); few.mprotect(page, 4096, RW)",
    )


def _heap(cached: Iterable[int]) -> AddressSpace:
    """A mapping of 64 MiB, of which these pages are cached."""
    space = AddressSpace()
    space.mmap(_BASE, 64 << 20, RW, _FIXED)
    for page in cached:
        space.copy_out(_BASE + page * _PAGE, b"x")
        space.read_bytes(_BASE + page * _PAGE, 1)
    return space


def before_rows(known: Names) -> Iterator[Row]:
    """brk, mremap, and the first touch of a page, against the tree before."""
    tree = usermem_before()
    spaces = {"new": AddressSpace} if tree is None else {"new": AddressSpace, "old": tree.AddressSpace}
    case = partial(row, {name: _grown(space) for name, space in spaces.items()} | {"top": _BASE, "at": _BASE << 1})
    brk, mremap = (
        "{0}.brk(top + 0x4000); {0}.brk(top + 0x1000)",
        "{0}.mremap(at, 8192, 16384); {0}.mremap(at, 16384, 8192)",
    )
    yield case("brk there and back", "before", 0.35, ours=brk.format("new"), before=brk.format("old"))
    yield case("mremap there and back", "before", 0.45, ours=mremap.format("new"), before=mremap.format("old"))
    who = {"new": "ours", "old": "before"}
    yield Row("first touch of a page", "before", 0.5, {who[name]: _touching(space) for name, space in spaces.items()})


def _grown(make: Callable[[], Any]) -> Any:
    """A space with a heap at _BASE and a mapping of two pages above it."""
    space = make()
    space.set_brk(_BASE)
    space.brk(_BASE + _PAGE)
    space.mmap(_BASE << 1, 2 * _PAGE, RW, _FIXED)
    return space


def _touching(make: Callable[[], Any]) -> Prepared:
    """Read each page of a mapping that has been touched in its first page only."""
    fresh: list[Any] = []

    def prepare(n: int) -> None:
        fresh[:] = [make()]
        fresh[0].mmap(_BASE, (n + 1) * _PAGE, RW, _FIXED)
        fresh[0].copy_out(_BASE, b"x")

    def run(n: int) -> None:
        read_bytes = fresh[0].read_bytes
        for at in range(_BASE + _PAGE, _BASE + (n + 1) * _PAGE, _PAGE):
            read_bytes(at, 8)

    return Prepared(run, prepare)
