"""What this package calls of a Uc, and Unicorn's constants, which are part of its ABI.

Source: include/unicorn/unicorn.h of Unicorn 2.1.
"""

from __future__ import annotations

import sys
from typing import Any, Final, TypeAlias

from hostarch import EXECUTE, READ, WRITE, AccessType

PAGE: Final = 4096
"""The multiple, in bytes, that regions begin and end at."""

# uc_mem_type, which a hook for invalid accesses is called with
ACCESS: Final[dict[int, AccessType]] = {19: READ, 20: WRITE, 21: EXECUTE, 22: WRITE, 23: READ, 24: EXECUTE}
FIRST_PROT: Final = 22
"""UC_MEM_WRITE_PROT: from it on something is mapped there, without the right."""

# uc_hook_type, uc_control_type
HOOK_MEM_INVALID: Final = 0x3F0
CTL_IO_WRITE: Final = 1
CTL_TLB_FLUSH: Final = 11
CTL_CONTEXT_MODE: Final = 14
CTL_CONTEXT_CPU: Final = 1
CTL_CONTEXT_MEMORY: Final = 2

# uc_err
ERR_READ_UNMAPPED: Final = 6
ERR_WRITE_UNMAPPED: Final = 7

Engine: TypeAlias = Any
"""A unicorn.Uc of Unicorn 2.1 or later."""


def binding(uc: Engine, name: str) -> Any:
    """What Unicorn's Python module has of this name. Raises TypeError if uc is none of its engines."""
    for each in type(uc).__mro__:
        found = getattr(sys.modules.get(each.__module__), name, None)
        if found is not None:
            return found
    raise TypeError(f"uc is a {type(uc).__name__}, expected a unicorn.Uc of Unicorn 2.1 or later")


def end_by_error(uc: Engine, code: int) -> None:
    """Have emu_start, in whose callback this is called, stop at this instruction and raise an UcError.

    The binding does so with what its callbacks raise. But what is raised in one that returns a number is printed, too.
    """
    if uc._hook_exception is None:
        uc._hook_exception = binding(uc, "UcError")(code)
    uc.emu_stop()
