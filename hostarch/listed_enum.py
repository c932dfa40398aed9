"""ListedEnumType: enums that list their members, and not what they are made of."""

from __future__ import annotations

from enum import EnumType


class ListedEnumType(EnumType):
    """The type of a StrEnum or IntEnum whose ``dir()`` and ``help()`` show its members, and no method of str or int."""

    def __dir__(cls) -> list[str]:
        return ["__class__", "__doc__", "__module__", *cls.__members__]
