"""Buffers of pointers that the interpreter follows: bytes of a guest's stored there would end the process."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from edge_layouts import BASE, FIXED, PAGE, RW, one
from hostarch import mman
from safemem import Block, BlockSeq, BlockSeqReader, ToIOReader, copy
from safemem.buffers import readable_view, writable_view
from usermem import AddressSpace, BytesIO, FaultError, IOReadWriter, IOSequence, copy_in_vec
from usermem.testing.model import ModelBytes


class Choice(ctypes.Union):
    """ctypes does not tell the format of a union."""

    _fields_ = (("number", ctypes.c_int), ("thing", ctypes.py_object))


class Packed(ctypes.Structure):
    """Nor of a packed structure."""

    _pack_ = 1
    _fields_ = (("Oz", ctypes.c_int), ("names", ctypes.c_char_p * 3))


class Outer(ctypes.Structure):
    """A structure with such a one in it."""

    _fields_ = (("O", ctypes.c_int), ("inner", Packed))


class Derived(Packed):
    """What it has of such pointers is another's."""

    _fields_ = (("number", ctypes.c_int),)  # type: ignore[assignment]


class Plain(ctypes.Structure):
    """No pointers, but names that look so."""

    _fields_ = (("Oz", ctypes.c_int), ("X", ctypes.c_double), ("address", ctypes.c_void_p))


class PlainChoice(ctypes.Union):
    """A union of numbers."""

    _fields_ = (("O", ctypes.c_int), ("P", ctypes.c_void_p))


FOLLOWED: dict[str, Callable[[], Any]] = {
    "py_object": ctypes.py_object,
    "objects": ctypes.py_object * 2,
    "strings": ctypes.c_char_p * 2,
    "wide strings": ctypes.c_wchar_p * 2,
    "pointer": lambda: ctypes.pointer(ctypes.c_int()),
    "pointers": ctypes.POINTER(Plain) * 2,
    "functions": ctypes.CFUNCTYPE(None) * 2,
    "union": Choice,
    "unions": Choice * 2,
    "packed": Packed,
    "structure": Outer,
    "derived": Derived,
    "view": lambda: memoryview((ctypes.py_object * 2)()),
}
PLAIN: list[Callable[[], Any]] = [
    Plain,
    Plain * 2,
    PlainChoice,
    PlainChoice * 3,
    ctypes.c_wchar * 3,
    ctypes.c_void_p * 3,
    lambda: ctypes.create_string_buffer(9),
    lambda: memoryview(bytearray(6)).cast("c"),
]
try:
    import numpy as np
except ImportError:
    pass
else:
    FOLLOWED["NumPy's objects"] = lambda: np.zeros(3, "O")
    FOLLOWED["NumPy's structures"] = lambda: np.zeros(3, [("a", "i4"), ("b", "O")])
    PLAIN += [partial(np.zeros, 3, kind) for kind in ("F", "D", "G", "U3", "S3", "?", "i4", "V4")]
    PLAIN.append(lambda: np.zeros((3, 2), [("Oz", "i4"), ("X", "c16")]))


def into(buffer: Any) -> dict[str, Callable[[], object]]:
    """What would store bytes in it."""
    space = AddressSpace()
    space.mmap(BASE, PAGE, RW, FIXED)
    space.copy_out(BASE, b"A" * PAGE)
    model: Any = ModelBytes(b"A" * 64)
    reader = BlockSeqReader(BlockSeq.of(Block(b"A" * 8)))
    return {
        "copy_in": lambda: space.copy_in(BASE, buffer),
        "copy_in, not cached": lambda: AddressSpace().copy_in(0, buffer),
        "copy_in_vec": lambda: copy_in_vec(space, one(BASE, PAGE), buffer),
        "BytesIO.copy_in": lambda: BytesIO(b"A" * 64).copy_in(0, buffer),
        "BytesIO over it": lambda: BytesIO(buffer).copy_out(0, b"A" * 8),
        "a block of it": lambda: copy(Block(buffer), Block(b"A" * 8)),
        "a stream": lambda: reader.read_to_blocks(BlockSeq.of(Block(buffer))),
        "ToIOReader": lambda: ToIOReader(reader).readinto(buffer),
        "IOReadWriter": lambda: IOReadWriter(space, BASE).readinto(buffer),
        "IOSequence": lambda: IOSequence(space, one(BASE, PAGE)).copy_in(buffer),
        "the model": lambda: model.copy_in(0, buffer),
    }


@pytest.mark.parametrize("name", FOLLOWED)
def test_they_are_no_destination(name: str) -> None:
    """A TypeError (of a BytesIO over it a fault), and nothing is stored; as a source they are bytes like others."""
    buffer = FOLLOWED[name]()
    before = bytes(memoryview(buffer).cast("B"))
    for call, store in into(buffer).items():
        with pytest.raises((TypeError, FaultError)):
            store()
        assert bytes(memoryview(buffer).cast("B")) == before, call
    with pytest.raises(TypeError, match=r"dst must be .* not pointers"):
        writable_view(buffer, "dst")
    assert readable_view(buffer, "src") == before


def test_a_guest_does_not_get_them() -> None:
    """Attached they can be read, and mprotect does not make more of it."""
    space = AddressSpace()
    buffer = (ctypes.py_object * (PAGE // 8))()
    at = space.attach(0, buffer)
    with pytest.raises(OSError, match="Bad address"):
        space.copy_out(at, b"A" * 8)
    with pytest.raises(PermissionError):
        space.mprotect(at, PAGE, mman.PROT_READ | mman.PROT_WRITE)
    assert space.read_bytes(at, 8) == bytes(8)


@pytest.mark.parametrize("make", PLAIN)
def test_numbers_stay_what_they_were(make: Callable[[], Any]) -> None:
    """Whatever their fields are called: all of their bytes can be written."""
    buffer = make()
    n = memoryview(buffer).nbytes
    assert BytesIO(b"A" * n).copy_in(0, buffer) == n
    assert bytes(memoryview(buffer).cast("B")) == b"A" * n
