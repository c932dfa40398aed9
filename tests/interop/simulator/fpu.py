"""The FXSAVE image of an engine's x87 and SSE registers, as a signal frame has it. Source: Intel SDM, FXSAVE."""

from __future__ import annotations

import struct
from typing import Any, Final

from unicorn import x86_const as x86

SIZE: Final = 512
_XMM: Final = [getattr(x86, f"UC_X86_REG_XMM{n}") for n in range(16)]
_ST: Final = [getattr(x86, f"UC_X86_REG_FP{n}") for n in range(8)]
_CONTROL: Final = (x86.UC_X86_REG_FPCW, x86.UC_X86_REG_FPSW, x86.UC_X86_REG_FPTAG)
_MXCSR_MASK: Final = 0xFFFF


def fxsave(uc: Any) -> bytes:
    """The image."""
    control, status, tags = (uc.reg_read(each) for each in _CONTROL)
    used = sum(1 << n for n in range(8) if tags >> 2 * n & 3 != 3)
    head = struct.pack("<HHBxH16xII", control, status, used, 0, uc.reg_read(x86.UC_X86_REG_MXCSR), _MXCSR_MASK)
    stack = b"".join(struct.pack("<QH6x", *uc.reg_read(each)) for each in _ST)
    return (head + stack + b"".join(uc.reg_read(each).to_bytes(16, "little") for each in _XMM)).ljust(SIZE, b"\0")


def fxrstor(uc: Any, image: bytes) -> None:
    """Load an image."""
    control, status, used, _, mxcsr, _ = struct.unpack_from("<HHBxH16xII", image)
    uc.reg_write(x86.UC_X86_REG_FPCW, control)
    uc.reg_write(x86.UC_X86_REG_FPSW, status)
    uc.reg_write(x86.UC_X86_REG_FPTAG, sum(3 << 2 * n for n in range(8) if not used >> n & 1))
    uc.reg_write(x86.UC_X86_REG_MXCSR, mxcsr & _MXCSR_MASK)
    for n, each in enumerate(_ST):
        uc.reg_write(each, struct.unpack_from("<QH", image, 32 + 16 * n))
    for n, each in enumerate(_XMM):
        uc.reg_write(each, int.from_bytes(image[160 + 16 * n : 176 + 16 * n], "little"))
