"""The repr of a value, without what has its default, so that eval() gives an equal value."""

from __future__ import annotations

from typing import Any

from attrs import Attribute, fields

from hostarch import AccessType


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
