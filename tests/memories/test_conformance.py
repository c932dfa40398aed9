"""Memory that is not ours keeps the contract, as check_io asks for it; where it has no atomics it refuses them."""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Iterator

import pytest

from hostarch import AMD64, ARM64, READ, READ_WRITE, mman
from other_process import OtherProcess
from usermem import IO, AddressSpace, FaultError
from usermem.memories import FunctionIO, ProcessIO, RemoteIO
from usermem.testing import Layout, Mapping, ModelMemory, check_io, conformance_layout

PAGE = mmap.PAGESIZE
LAYOUT = conformance_layout()
PLAIN = Layout(AMD64, (Mapping(0x10000, 2 * PAGE, READ_WRITE), Mapping(0x14000, PAGE, READ_WRITE)))


class OverSpace(RemoteIO):
    """An AddressSpace that is reached by calls, which know why they stop."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout.arch)
        self.space = layout.address_space()

    def read(self, addr: int, buffer: memoryview, *, ignore_permissions: bool = False) -> int:
        return self.space.copy_in(addr, buffer, ignore_permissions=ignore_permissions)

    def write(self, addr: int, buffer: memoryview, *, ignore_permissions: bool = False) -> int:
        return self.space.copy_out(addr, buffer, ignore_permissions=ignore_permissions)

    def writable(self, addr: int, length: int, *, ignore_permissions: bool = False) -> int:
        done = 0
        while done < length:
            try:
                self.space.zero_out(addr + done, 0, ignore_permissions=ignore_permissions)
                blocks, fault = self.space.resolve(
                    addr, length, READ_WRITE, ignore_permissions=ignore_permissions
                )
            except FaultError:
                break
            return length if fault is None else sum(map(len, blocks))
        return done

    def close(self) -> None:
        self.space.close()
