"""RegisterBatch reads and writes what reg_read and reg_write do, and refuses what 8 bytes do not hold."""

from __future__ import annotations

from typing import Any

import pytest

from usermem.unicorn import RegisterBatch

unicorn: Any = pytest.importorskip("unicorn", reason="needs Unicorn: pip install 'usermem[interop]'")
x86: Any = pytest.importorskip("unicorn.x86_const")
arm64: Any = pytest.importorskip("unicorn.arm64_const")
arm: Any = pytest.importorskip("unicorn.arm_const")

X86 = [
    x86.UC_X86_REG_RAX,
    x86.UC_X86_REG_RDI,
    x86.UC_X86_REG_RSI,
    x86.UC_X86_REG_R9,
    x86.UC_X86_REG_EBX,
    x86.UC_X86_REG_R8W,
]
ARM64 = [arm64.UC_ARM64_REG_X8, arm64.UC_ARM64_REG_X0, arm64.UC_ARM64_REG_SP, arm64.UC_ARM64_REG_PC]
MACHINES = {
    "x86-64": (unicorn.UC_ARCH_X86, unicorn.UC_MODE_64, X86),
    "arm": (unicorn.UC_ARCH_ARM, unicorn.UC_MODE_ARM, [arm.UC_ARM_REG_R7, arm.UC_ARM_REG_R0]),
    "arm64": (unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM, ARM64),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_values_are_those_of_single_calls(machine: str) -> None:
    """Both ways, whole words, and again after others were written."""
    arch, mode, numbers = MACHINES[machine]
    uc = unicorn.Uc(arch, mode)
    batch = RegisterBatch(uc, numbers)
    for turn in (1, 2):
        for i, number in enumerate(numbers):
            uc.reg_write(number, (i + turn) * 0x1000_0004)
        assert batch.read() == [uc.reg_read(number) for number in numbers]
        batch.write(*(0x7000_0000 + 16 * turn + 4 * i for i in range(len(numbers))))
        assert [uc.reg_read(number) for number in numbers] == batch.read()
        assert batch.read()[0] == 0x7000_0000 + 16 * turn


@pytest.mark.parametrize("machine", MACHINES)
def test_narrow_registers_are_read_as_they_are(machine: str) -> None:
    """Whatever the same batch has written: of a value the register has the low bits, and the rest are no register's."""
    arch, mode, numbers = MACHINES[machine]
    uc = unicorn.Uc(arch, mode)
    batch = RegisterBatch(uc, numbers)
    for value in (-14, (1 << 64) - 16, 0x1122_3344_5566_7780, 0):
        batch.write(*[value] * len(numbers))
        assert batch.read() == [uc.reg_read(number) for number in numbers]


def test_results_are_negative_errnos() -> None:
    """A system call returns -14 in 64 bits."""
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    RegisterBatch(uc, X86[:1]).write(-14)
    assert uc.reg_read(x86.UC_X86_REG_RAX) == (1 << 64) - 14


def test_what_is_refused() -> None:
    """Registers of 128 bits, numbers that the engine does not know, another count, and what is no engine."""
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    with pytest.raises(ValueError, match="64 bits"):
        RegisterBatch(uc, [x86.UC_X86_REG_XMM0])
    with pytest.raises(ValueError, match="64 bits"):
        RegisterBatch(uc, [x86.UC_X86_REG_GDTR])
    batch = RegisterBatch(uc, X86)
    with pytest.raises(ValueError):
        batch.write(1, 2)
    with pytest.raises(TypeError, match=r"unicorn\.Uc"):
        RegisterBatch(object(), [1])
