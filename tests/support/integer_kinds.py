"""Integers that are no plain ints: NumPy's, ctypes', an int's subclass, and what has only ``__index__``."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest

from hostarch import Addr, AddrRange, AddrRangeSeq
from hostarch.integers import check_int
from safemem import Block

Like = Callable[[int], Any]


class Index:
    """An integer by ``__index__`` alone."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


_NUMPY = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "longlong")
_FOUND = _NUMPY if find_spec("numpy") else ()
_CTYPES = ("c_uint8", "c_int32", "c_uint32", "c_int64", "c_uint64", "c_void_p")
KINDS = ["index", "address", *_CTYPES, *_FOUND]


def kind_of(name: str) -> Like:
    """What makes an integer of a kind from an int that fits it, and leaves others as they are."""
    make: Any = {"index": Index, "address": Addr}.get(name) or getattr(ctypes, name, None)
    if make is None:
        make = getattr(pytest.importorskip("numpy"), name)

    def like(value: int) -> Any:
        try:
            made = make(value)
            return made if check_int(made, "made") == value else value
        except OverflowError:
            return value

    return like


def plain(value: int) -> int:
    """No kind: the value itself."""
    return value


def range_of(i: Like, addr: int, n: int) -> AddrRange:
    """A range whose bounds are of a kind."""
    return AddrRange(i(addr), i(addr + n))


def checked(result: object) -> object:
    """The result, in which every number is an int."""
    if isinstance(result, tuple | list):
        return [checked(part) for part in result]
    assert result is None or isinstance(result, int | bytes | str | AddrRange | AddrRangeSeq | Block), type(result)
    return result
