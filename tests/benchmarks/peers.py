"""The engines that are measured beside, where they are installed: the same memory in each, as its users reach it."""

from __future__ import annotations

import ctypes
import importlib
import mmap
from collections.abc import Callable
from typing import Any


def unicorn(addr: int, data: bytes) -> Any:
    """A Unicorn engine with data mapped at addr, or None."""
    try:
        module: Any = importlib.import_module("unicorn")
    except ImportError:
        return None
    uc = module.Uc(module.UC_ARCH_X86, module.UC_MODE_64)
    uc.mem_map(addr, len(data))
    uc.mem_write(addr, data)
    return uc


def unicorn_over(memory: mmap.mmap, addr: int, page: int, size: int) -> Callable[[], Callable[[], object]] | None:
    """What maps memory at addr in a fresh engine, and gives what makes one page of it read-only; or None."""
    try:
        module: Any = importlib.import_module("unicorn")
    except ImportError:
        return None
    host = ctypes.addressof(ctypes.c_char.from_buffer(memory))

    def fresh() -> Callable[[], object]:
        uc = module.Uc(module.UC_ARCH_X86, module.UC_MODE_64)
        uc.mem_map_ptr(addr, len(memory), module.UC_PROT_ALL, host)
        return lambda: uc.mem_protect(page, size, module.UC_PROT_READ)

    return fresh


def unicorn_string(uc: Any, addr: int, maxlen: int) -> bytes:
    """How one reads a string from Unicorn, which has no call for it."""
    found = bytearray()
    while len(found) < maxlen:
        chunk = uc.mem_read(addr + len(found), 64)
        end = chunk.find(0)
        if end >= 0:
            return bytes(found + chunk[:end])
        found += chunk
    return bytes(found)


def qiling(addr: int, data: bytes) -> Any:
    """A Qiling emulator with data mapped at addr, or None."""
    try:
        module: Any = importlib.import_module("qiling")
        const: Any = importlib.import_module("qiling.const")
    except ImportError:
        return None
    ql = module.Qiling(
        code=b"\x90",
        archtype=const.QL_ARCH.X8664,
        ostype=const.QL_OS.LINUX,
        verbose=const.QL_VERBOSE.OFF,
    )
    ql.mem.map(addr, len(data))
    ql.mem.write(addr, data)
    return ql
