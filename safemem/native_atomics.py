"""Atomic operations by the processor itself: libatomic, through ctypes.

GCC's libatomic has a function for each operation and size. It is part of GCC's run time and may be missing (slim
containers); what is found is tried before it is used.

Source: GCC, libatomic; https://gcc.gnu.org/wiki/Atomic/GCCMM/LIbrary.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from typing import Any, Final

_SEQ_CST: Final = 5
_CACHE_LINE: Final = 64
_POINTER: Final = ctypes.c_void_p
_LONG: Final = ctypes.c_uint64
_UINT: Final = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32, 8: ctypes.c_uint64}


class NativeAtomics:
    """The operations on words of 1, 2, 4 and 8 bytes at host addresses that are multiples of their size, or as
    :meth:`takes` says.

    The caller answers for the addresses: memory that is not there ends the process. Values are unsigned, in the host's
    byte order.
    """

    def __init__(self) -> None:
        """Raises OSError if there is no libatomic, or it does not do what it should."""
        lib = _load()
        self._x86 = platform.machine() == "x86_64"
        self._loads: dict[int, Callable[..., int]] = {}
        self._swaps: dict[int, Callable[..., int]] = {}
        self._adds: dict[int, Callable[..., int]] = {}
        self._compares: dict[int, Callable[..., bool]] = {}
        try:
            for size, uint in _UINT.items():
                self._loads[size] = _function(lib, f"__atomic_load_{size}", uint)
                self._swaps[size] = _function(lib, f"__atomic_exchange_{size}", uint)
                self._adds[size] = _function(lib, f"__atomic_fetch_add_{size}", uint)
                self._compares[size] = _function(lib, f"__atomic_compare_exchange_{size}", ctypes.c_bool)
        except AttributeError as exc:
            raise OSError(f"libatomic lacks a function: {exc}") from None
        self._try()

    def takes(self, address: int, size: int) -> bool:
        """Whether a word at an odd address will do.

        On x86-64 it does within a cache line (Intel SDM, volume 3, 9.1.1). Across two the host may slow the process
        down or end it (split_lock_detect); and other processors raise a signal.
        """
        return self._x86 and address % _CACHE_LINE + size <= _CACHE_LINE

    def load(self, address: int, size: int) -> int:
        """The word."""
        return self._loads[size](_POINTER(address), _SEQ_CST)

    def swap(self, address: int, size: int, new: int) -> int:
        """Store ``new``; what was there."""
        return self._swaps[size](_POINTER(address), new if size < 8 else _LONG(new), _SEQ_CST)

    def fetch_add(self, address: int, size: int, value: int) -> int:
        """Add ``value``, modulo the word's size; what was there."""
        return self._adds[size](_POINTER(address), value if size < 8 else _LONG(value), _SEQ_CST)

    def compare_and_swap(self, address: int, size: int, old: int, new: int) -> int:
        """Store ``new`` if the word is ``old``; what was there."""
        found = _UINT[size](old)
        value = new if size < 8 else _LONG(new)
        stored = self._compares[size](_POINTER(address), ctypes.byref(found), value, _SEQ_CST, _SEQ_CST)
        return old if stored else int(found.value)

    def _try(self) -> None:
        """Do each operation once at each size. Raises OSError if a result is wrong."""
        for size, uint in _UINT.items():
            words = (uint * 3)(1, 2, 3)
            address = ctypes.addressof(words) + size
            most = (1 << 8 * size) - 1
            found = [
                self.load(address, size),
                self.swap(address, size, most),
                self.fetch_add(address, size, 3),
                self.compare_and_swap(address, size, 5, 6),
                self.compare_and_swap(address, size, 2, 7),
                *words,
            ]
            if found != [2, 2, most, 2, 2, 1, 7, 3]:
                raise OSError(f"libatomic gives wrong answers for words of {size} bytes")


def _load() -> ctypes.PyDLL:
    # PyDLL keeps the GIL: an operation is shorter than giving it up.
    # By its soname: ctypes.util.find_library() starts ldconfig, a compiler and a linker to find the same name.
    try:
        return ctypes.PyDLL("libatomic.so.1")
    except OSError:
        raise OSError("there is no libatomic: install GCC's run time (libatomic1)") from None


def _function(lib: ctypes.PyDLL, name: str, result: Any) -> Any:
    """A function without argtypes, whose conversions take half of a call's time.

    So a plain int is a C int to it, which has room for a word of up to 4 bytes; what is longer is passed as an object.
    """
    function = getattr(lib, name)
    function.restype = result
    return function
