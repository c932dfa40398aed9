"""Atomic operations on a word of a block: swap, compare-and-swap, load, store, of 32 and 64 bits.

:func:`tier` says what "atomic" means on this host. Today it is ``lock``: indivisible against the other operations of
this module in this process, and against nothing else. A plain copy, another process or native code can come between.

Words are unsigned and in the host's byte order unless ``byte_order`` says otherwise. ``aligned=False`` lifts the rule
that the host address must be a multiple of the word's size, as gVisor's BytesIO does.

Source: gVisor pkg/safemem/block_unsafe.go, pkg/safecopy.
"""

from __future__ import annotations

import struct
import threading
from typing import Literal

from hostarch import HOST_BYTE_ORDER, ByteOrder
from safemem import safecopy
from safemem.block import Block, check_writable
from safemem.buffers import check_int
from safemem.errors import AlignmentError, HostFaultError

Tier = Literal["native", "lock"]

_lock = threading.Lock()
_WORDS = {
    (4, "little"): struct.Struct("<I"),
    (4, "big"): struct.Struct(">I"),
    (8, "little"): struct.Struct("<Q"),
    (8, "big"): struct.Struct(">Q"),
}


def tier() -> Tier:
    """Against whom these operations are atomic.

    ``native``: everyone, other processes too. ``lock``: other operations of this module in this process.
    """
    return "lock"


def swap_uint32(block: Block, new: int, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True) -> int:
    """Store ``new`` in the block's first 4 bytes and return what was there.

    Raises ValueError if the block is shorter or ``new`` is no uint32, AlignmentError if its address is no multiple of
    4, HostFaultError if its memory faults, TypeError if it is read-only. So do the others.
    """
    return _swap(block, 4, new, byte_order, aligned)


def swap_uint64(block: Block, new: int, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True) -> int:
    """As :func:`swap_uint32`, for 8 bytes."""
    return _swap(block, 8, new, byte_order, aligned)


def compare_and_swap_uint32(
    block: Block, old: int, new: int, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True
) -> int:
    """Store ``new`` if the word is ``old``, and return what was there: equal to ``old`` means stored."""
    return _compare_and_swap(block, 4, old, new, byte_order, aligned)


def compare_and_swap_uint64(
    block: Block, old: int, new: int, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True
) -> int:
    """As :func:`compare_and_swap_uint32`, for 8 bytes."""
    return _compare_and_swap(block, 8, old, new, byte_order, aligned)


def load_uint32(block: Block, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True) -> int:
    """The block's first 4 bytes."""
    return _load(block, 4, byte_order, aligned)


def load_uint64(block: Block, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True) -> int:
    """The block's first 8 bytes."""
    return _load(block, 8, byte_order, aligned)


def store_uint32(block: Block, new: int, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True) -> None:
    """Store ``new`` in the block's first 4 bytes."""
    _swap(block, 4, new, byte_order, aligned)


def store_uint64(block: Block, new: int, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True) -> None:
    """Store ``new`` in the block's first 8 bytes."""
    _swap(block, 8, new, byte_order, aligned)


def _swap(block: Block, size: int, new: int, byte_order: ByteOrder, aligned: bool) -> int:
    word = _WORDS[size, byte_order]
    data = _pack(word, new, "new")
    _check(block, size, aligned)
    check_writable(block, "block")
    with _lock:
        found = _get(block, size)
        _put(block, data, found)
    previous: int = word.unpack(found)[0]
    return previous


def _compare_and_swap(block: Block, size: int, old: int, new: int, byte_order: ByteOrder, aligned: bool) -> int:
    word = _WORDS[size, byte_order]
    data = _pack(word, new, "new")
    expected = _pack(word, old, "old")
    _check(block, size, aligned)
    check_writable(block, "block")
    with _lock:
        found = _get(block, size)
        if found == expected:
            _put(block, data, found)
    previous: int = word.unpack(found)[0]
    return previous


def _load(block: Block, size: int, byte_order: ByteOrder, aligned: bool) -> int:
    _check(block, size, aligned)
    with _lock:
        value: int = _WORDS[size, byte_order].unpack(_get(block, size))[0]
    return value


def _check(block: Block, size: int, aligned: bool) -> None:
    if len(block) < size:
        raise ValueError(f"block must have at least {size} bytes, not {len(block)}")
    if aligned and (address := block.address) % size:
        raise AlignmentError(address, size)


def _pack(word: struct.Struct, value: int, name: str) -> bytes:
    if not 0 <= check_int(value, name) < 1 << 8 * word.size:
        raise ValueError(f"{name} must be an unsigned {8 * word.size}-bit integer: {value}")
    return word.pack(value)


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
