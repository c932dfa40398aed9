"""A CPU runs the code that the space has, whoever writes it and however."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest

from cpu import CPU, FIXED, PAGE, RW, RWX, RX, SYSCALL, mov_eax, unicorn, x86
from hostarch import EXECUTE, mman
from usermem import AddressSpace, FaultError, FaultReason

BASE = 0x1000_0000


@pytest.fixture
def cpu() -> Iterator[CPU]:
    """A CPU over an empty space."""
    with AddressSpace() as space:
        cpu = CPU(space)
        yield cpu
        cpu.shared.close()


def test_an_instruction_that_goes_on_in_the_next_window(cpu: CPU) -> None:
    """It is fetched from two pages, neither of which the engine had."""
    edge = 0x2000_0000
    cpu.space.mmap(edge - PAGE, 2 * PAGE, RWX, FIXED)
    cpu.space.copy_out(edge - 2, mov_eax(77))
    assert cpu.run(edge - 2, 5) is None
    assert cpu.eax() == 77
    cpu.space.munmap(edge, PAGE)
    fault = cpu.run(edge - 2, 5)
    assert fault is not None
    assert (fault.address, fault.access) == (edge, EXECUTE)


def test_restored_a_thousand_times(cpu: CPU) -> None:
    """Mappings, rights and bytes are back each time, code too."""
    space = cpu.space
    space.mmap(BASE, 8 * PAGE, RWX, FIXED)
    space.copy_out(BASE, mov_eax(1))
    space.copy_out(BASE + PAGE, b"old")
    before = space.snapshot()
    for turn in range(1000):
        space.copy_out(BASE, mov_eax(turn + 2))
        assert cpu.run(BASE, 5) is None
        assert cpu.eax() == turn + 2
        assert cpu.store(BASE + PAGE, 7) is None
        if turn % 3 == 0:
            space.munmap(BASE + 2 * PAGE, PAGE)
            space.mprotect(BASE + 3 * PAGE, PAGE, mman.PROT_READ)
        space.restore(before)
        assert cpu.run(BASE, 5) is None
        assert cpu.eax() == 1
        assert cpu.load(BASE + PAGE) == ord("o")
        assert cpu.store(BASE + 2 * PAGE, 1) is cpu.store(BASE + 3 * PAGE, 1) is None
    assert len(list(cpu.uc.mem_regions())) < 16


@pytest.mark.parametrize(
    ("how", "last"), [("copy", 2), ("rights ignored", 2), ("swap", 2), ("host memory", 1), ("host memory, told", 2)]
)
def test_code_that_is_written_while_it_runs(cpu: CPU, how: str, last: int) -> None:
    """In a hook, by the space, of which the engine hears, or in host memory, of which ``written`` tells it."""
    space = cpu.space
    f = BASE + PAGE
    space.mmap(f, PAGE, RX if how == "rights ignored" else RWX, FIXED)  # a region of its own, before that of its caller
    space.mmap(BASE + 16 * PAGE, PAGE, RW, FIXED)
    assert isinstance(cpu.run(f, 1), FaultError)
    space.mmap(BASE, PAGE, RX, FIXED)
    calls = b"\xe8\xfb\x0f\x00\x00" + SYSCALL + b"\xe8\xf4\x0f\x00\x00"  # call f; syscall; call f
    space.copy_out(BASE, calls, ignore_permissions=True)
    space.copy_out(f, mov_eax(1) + b"\xc3", ignore_permissions=True)
    seen = []

    def syscall(uc: Any, data: Any) -> None:
        seen.append(cpu.eax())
        if how == "copy":
            space.copy_out(f, mov_eax(2))
        elif how == "rights ignored":
            space.copy_out(f + 1, b"\2", ignore_permissions=True)
        elif how == "swap":
            space.swap_uint32(f, int.from_bytes(mov_eax(2)[:4], "little"))
        else:
            (run,) = space.host_runs(f, f + 5)
            ctypes.memmove(run.address, mov_eax(2), 5)
        if how == "host memory, told":
            cpu.shared.written(BASE - PAGE, 3 * PAGE)

    cpu.uc.hook_add(unicorn.UC_HOOK_INSN, syscall, None, 1, 0, x86.UC_X86_INS_SYSCALL)
    cpu.uc.reg_write(x86.UC_X86_REG_RSP, BASE + 17 * PAGE)
    assert cpu.run(BASE, 12) is None
    assert (seen, cpu.eax()) == ([1], last)


def test_code_that_was_fetched_before_it_was_mapped(cpu: CPU) -> None:
    """The engine knows such a block by its address alone; it is translated anew all the same."""
    space = cpu.space
    space.mmap(BASE, PAGE, RWX, FIXED)
    for value in (1, 2, 3):
        space.copy_out(BASE, mov_eax(value))
        assert cpu.run(BASE, 5) is None
        assert cpu.eax() == value


@pytest.mark.parametrize("how", ["restore", "mprotect"])
def test_code_that_a_change_of_the_map_brings(cpu: CPU, how: str) -> None:
    """A system call restores the code, or makes it writable, writes it and makes it executable, as a JIT does."""
    space = cpu.space
    space.mmap(BASE, PAGE, RWX, FIXED)
    space.copy_out(BASE, b"\xe8\xfb\x00\x00\x00" + SYSCALL + b"\xe8\xf4\x00\x00\x00")  # call f; syscall; call f
    space.copy_out(BASE + 0x100, mov_eax(1) + b"\xc3")
    space.mmap(BASE + 16 * PAGE, PAGE, RW, FIXED)
    before = space.snapshot()
    space.copy_out(BASE + 0x100, mov_eax(2))
    seen = []

    def syscall(uc: Any, data: Any) -> None:
        seen.append(cpu.eax())
        if how == "restore":
            space.restore(before)
        else:
            space.mprotect(BASE, PAGE, RW)
            space.copy_out(BASE + 0x100, mov_eax(1))
            space.mprotect(BASE, PAGE, RX)

    cpu.uc.hook_add(unicorn.UC_HOOK_INSN, syscall, None, 1, 0, x86.UC_X86_INS_SYSCALL)
    cpu.uc.reg_write(x86.UC_X86_REG_RSP, BASE + 17 * PAGE)
    assert cpu.run(BASE, 12) is None
    assert (seen, cpu.eax()) == ([2], 1)


def test_code_that_takes_its_own_right_to_run(cpu: CPU) -> None:
    """The next instruction is a fault, where Unicorn alone stops as if it had come to the end."""
    space = cpu.space
    space.mmap(BASE, PAGE, RX, FIXED)
    space.copy_out(BASE, SYSCALL + mov_eax(5), ignore_permissions=True)

    def forbid(uc: Any, data: Any) -> None:
        space.mprotect(BASE, PAGE, RW)

    cpu.uc.hook_add(unicorn.UC_HOOK_INSN, forbid, None, 1, 0, x86.UC_X86_INS_SYSCALL)
    fault = cpu.run(BASE, 7)
    assert fault is not None
    assert (fault.address, fault.access, fault.reason) == (BASE + 2, EXECUTE, FaultReason.PERMISSION)
