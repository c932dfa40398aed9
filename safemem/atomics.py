"""Atomic operations on a word of a block: load, swap, compare-and-swap, fetch-add, of 1, 2, 4 or 8 bytes (``size``).

:func:`tier` says what "atomic" means on this host:

- ``native``: indivisible against everyone, other processes and native code too. It takes libatomic, and memory that
  cannot fault. On x86-64 that is so at any address, unless the word crosses the end of a cache line (64 bytes).
- ``lock``: indivisible against the other operations of this module in this process, and against nothing else. A plain
  copy, another process or native code can come between. RuntimeError if a signal handler or a destructor asks for one
  while its thread is in the middle of another.

In a process of tier ``native`` the words that cannot be native (at odd addresses, but for those on x86-64; in memory
that may fault) are indivisible against each other only: a native operation on an overlapping word can come between.

The environment variable ``SAFEMEM_ATOMICS`` forces one of the two.

Words are unsigned and in the host's byte order unless ``byte_order`` says otherwise. ``aligned=False`` lifts the rule
that the host address must be a multiple of the word's size, as gVisor's BytesIO does. Each raises ValueError if the
block is shorter than the word or a value does not fit it, AlignmentError for an address that is no multiple of its
size, HostFaultError if its memory faults, and, unless it only loads, TypeError if it is read-only.

``swap_uint32`` and its like are the same with their size set, under gVisor's names.

Source: gVisor pkg/safemem/block_unsafe.go, pkg/safecopy.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from copy import copy as copy_object
from functools import cache, partial
from typing import TYPE_CHECKING, Final, Literal

from hostarch import HOST_BYTE_ORDER, ByteOrder
from safemem import safecopy
from safemem.block import Block, check_writable
from safemem.buffers import check_int
from safemem.errors import AlignmentError, HostFaultError
from safemem.fork import fork_safe_lock

if TYPE_CHECKING:
    from safemem.native_atomics import NativeAtomics

Tier = Literal["native", "lock"]
Size = Literal[1, 2, 4, 8]
Operation = Literal["load", "swap", "compare_and_swap", "fetch_add"]
"""The name of an operation, here and of NativeAtomics."""

FORCED: Final = "SAFEMEM_ATOMICS"
"""The environment variable that forces a tier."""

_lock = fork_safe_lock()


def tier() -> Tier:
    """Against whom these operations are atomic: see the module. Raises OSError if the one that is forced is not here,
    ValueError if it is none."""
    return "lock" if native() is None else "native"


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
        return exc.with_traceback(None)


@cache
def native() -> NativeAtomics | None:
    """The processor's own operations, by host addresses; None for the tier ``lock``. Raises as :func:`tier`."""
    forced = os.environ.get(FORCED)
    if forced == "lock":
        return None
    if forced not in (None, "", "native"):
        raise ValueError(f"{FORCED} must be native or lock, not {forced!r}")
    found = _found()
    if isinstance(found, OSError):
        if forced == "native":
            raise copy_object(found)
        return None
    return found


def load(size: Size, block: Block, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True) -> int:
    """The word at the start of the block."""
    operations, address = _check(block, size, aligned)
    if operations is None:
        return _locked(block, size, byte_order, lambda found: None)
    return _ordered(operations.load(address, size), size, byte_order)


def swap(size: Size, block: Block, new: int, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True) -> int:
    """Store ``new`` and return what was there."""
    new = _unsigned(new, size, "new")
    operations, address = _check(block, size, aligned)
    check_writable(block, "block")
    if operations is None:
        return _locked(block, size, byte_order, lambda found: new)
    return _ordered(operations.swap(address, size, _ordered(new, size, byte_order)), size, byte_order)


def compare_and_swap(
    size: Size, block: Block, old: int, new: int, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True
) -> int:
    """Store ``new`` if the word is ``old``, and return what was there: equal to ``old`` means stored."""
    new, old = _unsigned(new, size, "new"), _unsigned(old, size, "old")
    operations, address = _check(block, size, aligned)
    check_writable(block, "block")
    if operations is None:
        return _locked(block, size, byte_order, lambda found: new if found == old else None)
    values = _ordered(old, size, byte_order), _ordered(new, size, byte_order)
    return _ordered(operations.compare_and_swap(address, size, *values), size, byte_order)


def fetch_add(
    size: Size, block: Block, value: int, byte_order: ByteOrder = HOST_BYTE_ORDER, aligned: bool = True
) -> int:
    """Add ``value``, which may be negative, to the word, modulo its size; returns what was there."""
    mask = (1 << 8 * size) - 1
    value = check_int(value, "value")
    if not -mask - 1 <= value <= mask:
        raise ValueError(f"value must fit in {8 * size} bits: {value}")
    operations, address = _check(block, size, aligned)
    check_writable(block, "block")
    if operations is None:
        return _locked(block, size, byte_order, lambda found: found + value & mask)
    if byte_order == HOST_BYTE_ORDER:
        return operations.fetch_add(address, size, value & mask)
    while True:  # the carry runs the other way
        old = load(size, block, byte_order, aligned)
        if compare_and_swap(size, block, old, old + value & mask, byte_order, aligned) == old:
            return old


load_uint32: partial[int] = partial(load, 4)
load_uint64: partial[int] = partial(load, 8)
swap_uint32: partial[int] = partial(swap, 4)
swap_uint64: partial[int] = partial(swap, 8)
compare_and_swap_uint32: partial[int] = partial(compare_and_swap, 4)
compare_and_swap_uint64: partial[int] = partial(compare_and_swap, 8)


def _locked(block: Block, size: int, byte_order: ByteOrder, change: Callable[[int], int | None]) -> int:
    """Store what ``change`` makes of the word, unless that is None, and return what was there."""
    if _lock._is_owned():  # type: ignore[attr-defined]  # it would come between that operation's load and its store
        raise RuntimeError("this thread is in the middle of another atomic operation: no handler may come between")
    # In one line: a trace function that raises at the line of a ``with`` that ends would leave it locked.
    with _lock: return _exchange(block, size, byte_order, change)  # fmt: skip # noqa: E701


def _exchange(block: Block, size: int, byte_order: ByteOrder, change: Callable[[int], int | None]) -> int:
    try:
        found = block.take_first(size).tobytes()
    except HostFaultError as exc:
        exc.transferred = 0  # half a word is nothing
        raise
    value = int.from_bytes(found, byte_order)
    new = change(value)
    if new is not None:
        _put(block, new.to_bytes(size, byte_order), found)
    return value


def _check(block: Block, size: int, aligned: bool) -> tuple[NativeAtomics | None, int]:
    """The processor's operations and the word's host address, if it may go there; None for the lock."""
    if len(block) < size:
        raise ValueError(f"block must have at least {size} bytes, not {len(block)}")
    address = block.address
    odd = address % size != 0
    if odd and aligned:
        raise AlignmentError(address, size)
    operations = None if block.need_safecopy or not address else native()
    if odd and operations is not None and not operations.takes(address, size):
        operations = None
    return operations, address


def _ordered(value: int, size: int, byte_order: ByteOrder) -> int:
    """A word of the host's order as one of the other, or the other way round."""
    if byte_order == HOST_BYTE_ORDER:
        return value
    return int.from_bytes(value.to_bytes(size, "little"), "big")


def _unsigned(value: int, size: int, name: str) -> int:
    value = check_int(value, name)
    if not 0 <= value < 1 << 8 * size:
        raise ValueError(f"{name} must be an unsigned {8 * size}-bit integer: {value}")
    return value


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
