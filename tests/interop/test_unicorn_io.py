"""UnicornIO keeps the contract over an engine's own memory."""

from __future__ import annotations

from typing import Any

import pytest

from cpu import SYSCALL, mov_eax, unicorn, x86
from hostarch import READ
from usermem import IO, FaultError, FaultReason
from usermem.testing import ModelMemory, check_io, conformance_layout
from usermem.unicorn import UnicornIO

LAYOUT = conformance_layout()


def engine() -> Any:
    """An engine of x86-64 with nothing mapped."""
    return unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)


def test_an_engines_own_memory_keeps_the_contract() -> None:
    """All of it: rights, holes, the top of user space, words."""

    def make() -> tuple[IO, ModelMemory]:
        uc = engine()
        for mapping in LAYOUT.mappings:
            uc.mem_map(mapping.addr, mapping.length, int(mapping.prot))
        return UnicornIO(uc, arch=LAYOUT.arch), LAYOUT.model()

    check_io(make)


def test_code_that_is_written_while_it_runs() -> None:
    """In a hook of a system call: what is called next is what was written."""
    uc = engine()
    uc.mem_map(0x11000, 0x1000)
    uc.mem_map(0x10000, 0x1000)
    io = UnicornIO(uc)
    io.copy_out(0x10000, b"\xe8\xfb\x0f\x00\x00" + SYSCALL + b"\xe8\xf4\x0f\x00\x00")  # call f; syscall; call f
    io.copy_out(0x11000, mov_eax(1) + b"\xc3")
    seen = []

    def syscall(uc: Any, data: Any) -> None:
        seen.append(uc.reg_read(x86.UC_X86_REG_EAX))
        io.copy_out(0x10FFF, b"\0" + mov_eax(2))

    uc.hook_add(unicorn.UC_HOOK_INSN, syscall, None, 1, 0, x86.UC_X86_INS_SYSCALL)
    uc.reg_write(x86.UC_X86_REG_RSP, 0x12000)
    uc.emu_start(0x10000, 0x1000C)
    assert (seen, uc.reg_read(x86.UC_X86_REG_EAX)) == ([1], 2)


def test_the_guest_sees_what_was_written() -> None:
    """And the other way round; a copy that runs into a hole says how far it got."""
    uc = engine()
    uc.mem_map(0x10000, 0x1000)
    io = UnicornIO(uc)
    io.copy_out(0x10000, b"\x48\xff\x05\xf9\x0f\x00\x00"[:7].ljust(8, b"\0"))
    assert bytes(uc.mem_read(0x10000, 3)) == b"\x48\xff\x05"
    with pytest.raises(FaultError) as caught:
        io.read_bytes(0x10FF0, 32)
    assert (caught.value.transferred, caught.value.address, caught.value.access) == (16, 0x11000, READ)
    assert caught.value.reason is FaultReason.UNMAPPED
