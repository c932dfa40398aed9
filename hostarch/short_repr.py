"""short_repr: the repr of a value with many fields, most of which have their defaults."""

from __future__ import annotations

from attrs import AttrsInstance, fields


def short_repr(value: AttrsInstance) -> str:
    """The call that makes an attrs value, as it is written in Python, without the arguments that are defaults."""
    given = ((field, getattr(value, field.name)) for field in fields(type(value)) if field.init)
    arguments = (f"{field.name}={argument!r}" for field, argument in given if argument != field.default)
    return f"{type(value).__name__}({', '.join(arguments)})"
