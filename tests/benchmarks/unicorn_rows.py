"""The rows of ``unicorn``: what sharing an engine costs, against Unicorn's own calls."""

from __future__ import annotations

import ctypes
import importlib
import mmap as host_mmap
import time
from collections.abc import Iterator
from typing import Any

from hostarch import mman
from mapping_rows import MappingRow
from timing import best, loop
from usermem import AddressSpace
from usermem.unicorn import RegisterBatch, share

_PAGE = 4096
_BASE = 0x1000_0000
_CODE = 0x7000_0000
_RW = mman.PROT_READ | mman.PROT_WRITE
_ANON = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS
_FIXED = _ANON | mman.MAP_FIXED
_MAPPINGS = 30
_GROWN = 1000
_STORE = b"\x88\x03"  # mov [rbx], al


def _engine(unicorn: Any) -> Any:
    return unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)


def _space() -> AddressSpace:
    """A process's mappings, none of which can be one with its neighbour."""
    space = AddressSpace()
    for i in range(_MAPPINGS):
        space.mmap(_BASE + 2 * i * _PAGE, _PAGE, _RW, _FIXED)
    return space


def _syncs(unicorn: Any) -> Iterator[MappingRow]:
    """mmap and munmap in a space that an engine shares, without what they cost in one that is not shared."""
    alone, shared, uc, own = _space(), _space(), _engine(unicorn), _engine(unicorn)
    memory = host_mmap.mmap(-1, 2 * _PAGE)
    host = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for i in range(_MAPPINGS):
        own.mem_map_ptr(_BASE + 2 * i * _PAGE, _PAGE, 3, host)
    pair = "space.munmap(space.mmap(0, size, rights, flags), size)"
    names = {"size": 2 * _PAGE, "rights": _RW, "flags": _ANON}
    with share(uc, shared):
        times = best(
            {
                "alone": loop(pair, names | {"space": alone}),
                "shared": loop(pair, names | {"space": shared}),
                "own": loop(
                    "uc.mem_map_ptr(addr, size, 3, host); uc.mem_unmap(addr, size)",
                    {"uc": own, "addr": _BASE * 2, "size": 2 * _PAGE, "host": host},
                ),
            }
        )
    sync = times["shared"] - times["alone"]
    what = f"{sync / 1e3:.1f} us; against mem_map_ptr+mem_unmap, {_MAPPINGS} regions"
    yield MappingRow("sync of mmap+munmap", what, sync / times["own"], 1.3)


def _stacks(unicorn: Any) -> Iterator[MappingRow]:
    """A stack that a CPU grows page by page, without what it takes to store as often in one page."""
    const: Any = importlib.import_module("unicorn.x86_const")
    found = float("inf")
    for _ in range(7):
        space, uc = _space(), _engine(unicorn)
        space.mmap(_CODE, _PAGE, 5, _FIXED)
        space.copy_out(_CODE, _STORE, ignore_permissions=True)
        top = _BASE + (_GROWN + 1000) * _PAGE
        space.mmap(top - _PAGE, _PAGE, _RW, _FIXED | mman.MAP_GROWSDOWN)
        with share(uc, space):
            times = []
            for step in (0, _PAGE):
                started = time.thread_time()  # of 0.1 s: others run meanwhile
                for page in range(1, _GROWN):
                    uc.reg_write(const.UC_X86_REG_RBX, top - 1 - page * step)
                    uc.emu_start(_CODE, _CODE + len(_STORE))
                times.append(time.thread_time() - started)
        found = min(found, times[1] - times[0])
    us = found / _GROWN * 1e6
    yield MappingRow("a stack page", f"{us:.1f} us, in units of 50 us", us / 50, 1)


def _registers(unicorn: Any) -> Iterator[MappingRow]:
    """A system call's hook: seven registers, 64 bytes, and a result."""
    const: Any = importlib.import_module("unicorn.x86_const")
    names = ("RAX", "RDI", "RSI", "RDX", "R10", "R8", "R9")
    numbers = [getattr(const, f"UC_X86_REG_{name}") for name in names]
    space, uc = _space(), _engine(unicorn)
    with share(uc, space, eager=True):
        reads = "; ".join(f"r{i} = uc.reg_read({number})" for i, number in enumerate(numbers))
        batch, result = RegisterBatch(uc, numbers), RegisterBatch(uc, numbers[:1])
        times = best(
            {
                "theirs": loop(
                    f"{reads}; data = uc.mem_read(addr, 64); uc.reg_write(rax, 64)",
                    {"uc": uc, "addr": _BASE, "rax": numbers[0]},
                ),
                "ours": loop(
                    "r0, r1, r2, r3, r4, r5, r6 = batch.read(); data = space.read_bytes(addr, 64); result.write(64)",
                    {"batch": batch, "result": result, "space": space, "addr": _BASE},
                ),
            }
        )
    what = f"{times['ours']:.0f} ns; reg_read x7, mem_read, reg_write against it"
    yield MappingRow("registers and 64 B", what, times["theirs"] / times["ours"], 4, more=True)


def rows(only: str) -> Iterator[MappingRow]:
    """All, or those whose name contains ``only``; none without Unicorn."""
    try:
        unicorn: Any = importlib.import_module("unicorn")
    except ImportError:
        print("Unicorn is not there: nothing is measured")
        return
    for part in (_syncs, _stacks, _registers):
        for row in part(unicorn):
            if only in row.name:
                yield row
