"""The table of system calls: which function makes which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from attrs import frozen

from simulator.waits import Waiting

Int: TypeAlias = int
"""A C int: the low 32 bits of a register, with a sign."""
Long: TypeAlias = int
"""A long: a register, with a sign. A plain ``int`` is the register as it is: an address, a size."""

Result: TypeAlias = int | Waiting | None
"""What a handler returns: a number; a generator, if it may have to wait; None if the registers are to stay."""
Handler: TypeAlias = Callable[..., Result]


def to_int(register: int) -> int:
    """The low 32 bits with their sign."""
    return ((register & 0xFFFF_FFFF) ^ 0x8000_0000) - 0x8000_0000


def to_long(register: int) -> int:
    """64 bits with their sign."""
    return (register ^ 1 << 63) - (1 << 63)


@frozen
class SystemCall:
    """One of them: its name, its handler, and how registers become its arguments."""

    name: str
    handler: Handler
    conversions: Sequence[Callable[[int], int] | None]

    def arguments(self, registers: Sequence[int]) -> list[int]:
        """The arguments in these registers."""
        pairs = zip(self.conversions, registers, strict=False)
        return [register if convert is None else convert(register) for convert, register in pairs]


CALLS: Final[dict[int, SystemCall]] = {}
"""All, by their numbers."""


def syscall(number: int) -> Callable[[Handler], Handler]:
    """Make a function ``sys_name(task, ...)`` the handler of a number. It raises OSError for an error."""

    def register(handler: Any) -> Any:
        code = handler.__code__
        names = code.co_varnames[1 : code.co_argcount]
        conversions = [_CONVERSIONS[handler.__annotations__[name]] for name in names]
        CALLS[number] = SystemCall(handler.__name__.removeprefix("sys_"), handler, conversions)
        return handler

    return register


_CONVERSIONS: Final[dict[str, Callable[[int], int] | None]] = {"Int": to_int, "Long": to_long, "int": None}
