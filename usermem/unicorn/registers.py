"""RegisterBatch: several registers of an engine in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from safemem.buffers import check_int
from usermem.unicorn.engine import Engine, binding

if TYPE_CHECKING:
    import ctypes


class RegisterBatch:
    """Registers of an engine that are read and written together, in a tenth of the time of ``reg_read`` for each.

    For a system call hook: one batch for the number and the arguments, one for the result. Registers of at most 64
    bits; values are ints, of which the low bits count. It keeps the engine alive.
    """

    def __init__(self, uc: Engine, registers: Sequence[int]) -> None:
        """``registers`` are Unicorn's numbers (``UC_X86_REG_RAX``). Raises ValueError for one that is no integer."""
        import ctypes  # 2 ms at import

        self._uc = uc
        self._registers = tuple(check_int(each, "register") for each in registers)
        for each in self._registers:
            _check_width(uc, each)
        n = len(self._registers)
        self._ids = (ctypes.c_int32 * n)(*self._registers)
        # One each, for Unicorn stores as many bytes as a register has: the others stay zero.
        self._found, self._values = (ctypes.c_uint64 * n)(), (ctypes.c_uint64 * n)()
        self._places = tuple(_places(values) for values in (self._found, self._values))
        # Without argtypes: their conversion takes longer than the call. With the GIL: it never waits.
        types = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
        prototype = ctypes.PYFUNCTYPE(*types)
        library = binding(uc, "uclib")
        engine, ids = ctypes.c_void_p(uc._uch.value), ctypes.c_void_p(ctypes.addressof(self._ids))
        self._from, self._to = (
            (engine, ids, ctypes.c_void_p(ctypes.addressof(places)), ctypes.c_int(n)) for places in self._places
        )
        self._read = prototype(_address(library.uc_reg_read_batch))
        self._write = prototype(_address(library.uc_reg_write_batch))

    def read(self) -> list[int]:
        """The registers' values, in their order. Raises ValueError if the engine refuses."""
        if self._read(*self._from):
            raise ValueError(f"the engine cannot read registers {self._registers}")
        return self._found[:]

    def write(self, *values: int) -> None:
        """Set the registers, in their order; of a value the low bits count. Raises ValueError for another number."""
        self._values[:] = list(values)
        if self._write(*self._to):
            raise ValueError(f"the engine cannot write registers {self._registers}")


def _places(values: ctypes.Array[ctypes.c_uint64]) -> ctypes.Array[ctypes.c_void_p]:
    """The addresses of some values."""
    import ctypes

    base = ctypes.addressof(values)
    return (ctypes.c_void_p * len(values))(*(base + 8 * i for i in range(len(values))))


def _address(function: Any) -> int:
    import ctypes

    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _check_width(uc: Engine, register: int) -> None:
    """Raise ValueError for a register that 8 bytes do not hold."""
    import ctypes

    select = getattr(type(uc), "_select_reg_class", None)
    kind: type[ctypes.c_uint64] | None = select(register) if select is not None else None
    if kind is not None and kind is not ctypes.c_uint64:
        raise ValueError(f"register {register} is no integer of at most 64 bits")
