"""Plain values of plans: numbers checked by name, and a repr without what has its default, which eval() makes equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import Attribute, field, fields

from hostarch import AccessType


def checked(check: Callable[[int, str], int], name: str, default: int | None) -> Any:
    """A field for a number, a plain int whatever kind of integer is given; None where that is the default."""

    def convert(value: int | None) -> int | None:
        return None if value is None and default is None else check(value, name)  # type: ignore[arg-type]

    return field(default=default, converter=convert)


def shown(value: Any) -> str:
    """``Fault(addr=0x1000, times=1)``. A function is shown by its name."""

    def words(attribute: Attribute[Any]) -> str:
        it = getattr(value, attribute.name)
        if attribute.name == "addr":
            return hex(it)
        if isinstance(it, AccessType):
            return f"AccessType({int(it)})"
        return getattr(it, "__qualname__", None) or repr(it)

    kind = type(value)
    set_ones = [each for each in fields(kind) if getattr(value, each.name) != each.default]
    return f"{kind.__name__}({', '.join(f'{each.name}={words(each)}' for each in set_ones)})"
