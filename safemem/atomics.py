"""Atomic operations on a word of a block: load, store, swap, compare-and-swap, fetch-add, of 8 to 64 bits.

:func:`tier` says what "atomic" means on this host:

- ``native``: indivisible against everyone, other processes and native code too. It takes libatomic, and memory that
  cannot fault; a word at an odd address, or in memory that may fault, has the promise of ``lock``.
- ``lock``: indivisible against the other operations of this module in this process, and against nothing else. A plain
  copy, another process or native code can come between. A signal handler must not use it.

The environment variable ``SAFEMEM_ATOMICS`` forces one of the two.

Words are unsigned and in the host's byte order unless ``byte_order`` says otherwise. ``aligned=False`` lifts the rule
that the host address must be a multiple of the word's size, as gVisor's BytesIO does. Each raises ValueError if the
block is shorter than the word or a value does not fit it, AlignmentError for an address that is no multiple of its
size, HostFaultError if its memory faults, and, unless it only loads, TypeError if it is read-only.

Source: gVisor pkg/safemem/block_unsafe.go, pkg/safecopy.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Final, Literal

from hostarch import HOST_BYTE_ORDER, ByteOrder
from safemem import safecopy
from safemem.block import Block, check_writable
from safemem.buffers import check_int
from safemem.errors import AlignmentError, HostFaultError

if TYPE_CHECKING:
    from safemem.native_atomics import NativeAtomics

Tier = Literal["native", "lock"]

FORCED: Final = "SAFEMEM_ATOMICS"
"""The environment variable that forces a tier."""

_lock = threading.Lock()
_WORDS: Final = {
    (size, order): struct.Struct(("<" if order == "little" else ">") + code)
    for size, code in ((1, "B"), (2, "H"), (4, "I"), (8, "Q"))
    for order in ("little", "big")
}


def tier() -> Tier:
    """Against whom these operations are atomic: see the module. Raises OSError if the one that is forced is not here,
    ValueError if it is none."""
    return "lock" if _native() is None else "native"


def reason() -> str:
    """Why it is this tier, for people."""
    forced = os.environ.get(FORCED)
    if forced:
        return f"{FORCED}={forced}"
    found = _found()
    return "libatomic passes its test" if not isinstance(found, OSError) else str(found)


@cache
def _found() -> NativeAtomics | OSError:
    """The processor's atomics, or why they cannot be used: looked for once."""
    if sys.platform == "win32":
        return OSError("there is no libatomic on Windows")
    try:
        from safemem.native_atomics import NativeAtomics

        return NativeAtomics()
    except ImportError as exc:
        return OSError(f"this Python has no ctypes: {exc}")
    except OSError as exc:
        return exc


@cache
def _native() -> NativeAtomics | None:
    forced = os.environ.get(FORCED)
    if forced == "lock":
        return None
    if forced not in (None, "", "native"):
        raise ValueError(f"{FORCED} must be native or lock, not {forced!r}")
    found = _found()
    if isinstance(found, OSError):
        if forced == "native":
            raise found
        return None
    return found


def load_uint8(block: Block, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True) -> int:
    """The block's first byte."""
    return _load(block, 1, byte_order, aligned)


def load_uint16(block: Block, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True) -> int:
    """The block's first 2 bytes."""
    return _load(block, 2, byte_order, aligned)


def load_uint32(block: Block, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True) -> int:
    """The block's first 4 bytes."""
    return _load(block, 4, byte_order, aligned)


def load_uint64(block: Block, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True) -> int:
    """The block's first 8 bytes."""
    return _load(block, 8, byte_order, aligned)


def store_uint8(block: Block, new: int, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True) -> None:
    """Store ``new`` in the block's first byte."""
    _swap(block, 1, new, byte_order, aligned)


def store_uint16(block: Block, new: int, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True) -> None:
    """Store ``new`` in the block's first 2 bytes."""
    _swap(block, 2, new, byte_order, aligned)


def store_uint32(block: Block, new: int, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True) -> None:
    """Store ``new`` in the block's first 4 bytes."""
    _swap(block, 4, new, byte_order, aligned)


def store_uint64(block: Block, new: int, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True) -> None:
    """Store ``new`` in the block's first 8 bytes."""
    _swap(block, 8, new, byte_order, aligned)


def swap_uint8(block: Block, new: int, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True) -> int:
    """Store ``new`` in the block's first byte and return what was there."""
    return _swap(block, 1, new, byte_order, aligned)


def swap_uint16(block: Block, new: int, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True) -> int:
    """Store ``new`` in the block's first 2 bytes and return what was there."""
    return _swap(block, 2, new, byte_order, aligned)


def swap_uint32(block: Block, new: int, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True) -> int:
    """Store ``new`` in the block's first 4 bytes and return what was there."""
    return _swap(block, 4, new, byte_order, aligned)


def swap_uint64(block: Block, new: int, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True) -> int:
    """Store ``new`` in the block's first 8 bytes and return what was there."""
    return _swap(block, 8, new, byte_order, aligned)


def compare_and_swap_uint8(
    block: Block, old: int, new: int, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True
) -> int:
    """Store ``new`` if the word of byte is ``old``, and return what was there: equal to ``old`` means stored."""
    return _compare_and_swap(block, 1, old, new, byte_order, aligned)


def compare_and_swap_uint16(
    block: Block, old: int, new: int, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True
) -> int:
    """Store ``new`` if the word of 2 bytes is ``old``, and return what was there: equal to ``old`` means stored."""
    return _compare_and_swap(block, 2, old, new, byte_order, aligned)


def compare_and_swap_uint32(
    block: Block, old: int, new: int, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True
) -> int:
    """Store ``new`` if the word of 4 bytes is ``old``, and return what was there: equal to ``old`` means stored."""
    return _compare_and_swap(block, 4, old, new, byte_order, aligned)


def compare_and_swap_uint64(
    block: Block, old: int, new: int, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True
) -> int:
    """Store ``new`` if the word of 8 bytes is ``old``, and return what was there: equal to ``old`` means stored."""
    return _compare_and_swap(block, 8, old, new, byte_order, aligned)


def fetch_add_uint8(block: Block, value: int, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True) -> int:
    """Add ``value``, which may be negative, to the word of byte, modulo its size; returns what was there."""
    return _fetch_add(block, 1, value, byte_order, aligned)


def fetch_add_uint16(block: Block, value: int, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True) -> int:
    """Add ``value``, which may be negative, to the word of 2 bytes, modulo its size; returns what was there."""
    return _fetch_add(block, 2, value, byte_order, aligned)


def fetch_add_uint32(block: Block, value: int, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True) -> int:
    """Add ``value``, which may be negative, to the word of 4 bytes, modulo its size; returns what was there."""
    return _fetch_add(block, 4, value, byte_order, aligned)


def fetch_add_uint64(block: Block, value: int, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True) -> int:
    """Add ``value``, which may be negative, to the word of 8 bytes, modulo its size; returns what was there."""
    return _fetch_add(block, 8, value, byte_order, aligned)


def _load(block: Block, size: int, byte_order: ByteOrder, aligned: bool) -> int:
    address = _check(block, size, aligned)
    native = _native()
    if native is not None and address:
        return _ordered(native.load(address, size), size, byte_order)
    with _lock:
        value: int = _WORDS[size, byte_order].unpack(_get(block, size))[0]
    return value


def _swap(block: Block, size: int, new: int, byte_order: ByteOrder, aligned: bool) -> int:
    data = _pack(size, byte_order, new, "new")
    address = _check(block, size, aligned)
    check_writable(block, "block")
    native = _native()
    if native is not None and address:
        return _ordered(native.swap(address, size, _ordered(new, size, byte_order)), size, byte_order)
    return _locked(block, size, byte_order, lambda found: data)


def _compare_and_swap(block: Block, size: int, old: int, new: int, byte_order: ByteOrder, aligned: bool) -> int:
    data = _pack(size, byte_order, new, "new")
    expected = _pack(size, byte_order, old, "old")
    address = _check(block, size, aligned)
    check_writable(block, "block")
    native = _native()
    if native is not None and address:
        found = native.compare_and_swap(address, size, _ordered(old, size, byte_order), _ordered(new, size, byte_order))
        return _ordered(found, size, byte_order)
    return _locked(block, size, byte_order, lambda found: data if found == expected else None)


def _fetch_add(block: Block, size: int, value: int, byte_order: ByteOrder, aligned: bool) -> int:
    word = _WORDS[size, byte_order]
    mask = (1 << 8 * size) - 1
    value = check_int(value, "value")
    if not -mask - 1 <= value <= mask:
        raise ValueError(f"value must fit in {8 * size} bits: {value}")
    address = _check(block, size, aligned)
    check_writable(block, "block")
    native = _native()
    if native is None or not address:
        return _locked(block, size, byte_order, lambda found: word.pack(word.unpack(found)[0] + value & mask))
    if byte_order == HOST_BYTE_ORDER:
        return native.fetch_add(address, size, value & mask)
    while True:  # the carry runs the other way
        old = _ordered(native.load(address, size), size, byte_order)
        if _compare_and_swap(block, size, old, old + value & mask, byte_order, aligned) == old:
            return old


def _locked(block: Block, size: int, byte_order: ByteOrder, new: Callable[[bytes], bytes | None]) -> int:
    """Store what ``new`` makes of the word, unless that is None, and return what was there."""
    with _lock:
        found = _get(block, size)
        data = new(found)
        if data is not None:
            _put(block, data, found)
    previous: int = _WORDS[size, byte_order].unpack(found)[0]
    return previous


def _check(block: Block, size: int, aligned: bool) -> int:
    """The word's host address if the processor may go there, else 0."""
    if len(block) < size:
        raise ValueError(f"block must have at least {size} bytes, not {len(block)}")
    address = block.address
    if not address % size:
        return 0 if block.need_safecopy else address
    if aligned:
        raise AlignmentError(address, size)
    return 0


def _ordered(value: int, size: int, byte_order: ByteOrder) -> int:
    """A word of the host's order as one of the other, or the other way round."""
    if byte_order == HOST_BYTE_ORDER:
        return value
    return int.from_bytes(value.to_bytes(size, "little"), "big")


def _pack(size: int, byte_order: ByteOrder, value: int, name: str) -> bytes:
    if not 0 <= check_int(value, name) < 1 << 8 * size:
        raise ValueError(f"{name} must be an unsigned {8 * size}-bit integer: {value}")
    return _WORDS[size, byte_order].pack(value)


def _get(block: Block, size: int) -> bytes:
    try:
        return block.take_first(size).tobytes()
    except HostFaultError as exc:
        exc.transferred = 0  # half a word is nothing
        raise


def _put(block: Block, data: bytes, found: bytes) -> None:
    """Store a word whole or not at all; ``found`` is what is there."""
    if not block.need_safecopy:
        block.view()[: len(data)] = data
        return
    try:
        safecopy.copy_out(block.address, memoryview(data))
    except HostFaultError as exc:
        # It straddles a page that cannot be written: take back the bytes before it.
        safecopy.copy_out(block.address, memoryview(found)[: exc.transferred])
        exc.transferred = 0
        raise
