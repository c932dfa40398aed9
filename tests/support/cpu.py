"""A CPU over an address space: Unicorn, shared with it, and a few instructions of x86-64 that touch memory."""

from __future__ import annotations

from typing import Any

import pytest

from hostarch import mman
from usermem import AddressSpace, FaultError
from usermem.unicorn import RegisterBatch, SharedEngine, share

unicorn: Any = pytest.importorskip("unicorn", reason="needs Unicorn: pip install 'usermem[interop]'")
x86: Any = pytest.importorskip("unicorn.x86_const")

RW = mman.PROT_READ | mman.PROT_WRITE
RX = mman.PROT_READ | mman.PROT_EXEC
RWX = RW | mman.PROT_EXEC
ANON = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS
FIXED = ANON | mman.MAP_FIXED
PAGE = 4096
CODE = 0x7000_0000

LOAD = b"\x8a\x03"  # mov al, [rbx]
STORE = b"\x88\x03"  # mov [rbx], al
SYSCALL = b"\x0f\x05"


def mov_eax(value: int) -> bytes:
    """``mov eax, value``."""
    return b"\xb8" + value.to_bytes(4, "little")


def what(fault: object) -> object:
    """What a fault says."""
    if not isinstance(fault, FaultError):
        return fault
    return fault.address, int(fault.access), fault.reason, fault.signo, fault.si_code


class CPU:
    """An engine that shares a space's memory, with loads and stores in a page of their own at CODE."""

    def __init__(self, space: AddressSpace, **options: Any) -> None:
        self.space = space
        space.mmap(CODE, PAGE, RX, FIXED)
        space.copy_out(CODE, LOAD.ljust(16, b"\x90") + STORE, ignore_permissions=True)
        self.uc: Any = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self.shared: SharedEngine = share(self.uc, space, **options)
        self._registers = RegisterBatch(self.uc, [x86.UC_X86_REG_RBX, x86.UC_X86_REG_RAX])

    def run(self, start: int, length: int) -> FaultError | None:
        """Run the instructions at an address; the access that stopped them."""
        for _ in range(3):
            try:
                self.uc.emu_start(start, start + length)
            except unicorn.UcError:
                fault = self.shared.take_fault()
                if fault is not None:
                    return fault
                start, length = (pc := self.uc.reg_read(x86.UC_X86_REG_RIP)), start + length - pc
            else:
                return None
        raise AssertionError("the CPU does not get on")

    def load(self, addr: int) -> int | FaultError:
        """The byte that a load gives, or its fault."""
        self._registers.write(addr, 0)
        return self.run(CODE, len(LOAD)) or self._registers.read()[1] & 0xFF

    def store(self, addr: int, value: int) -> FaultError | None:
        """Store a byte."""
        self._registers.write(addr, value)
        return self.run(CODE + 16, len(STORE))

    def eax(self) -> int:
        """The register that most instructions here leave something in."""
        found: int = self.uc.reg_read(x86.UC_X86_REG_EAX)
        return found
