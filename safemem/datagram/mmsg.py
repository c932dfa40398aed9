"""Linux's struct mmsghdr, laid out once in memory of our own and used for many calls, and the calls.

For each message there is a header, ``max_iov`` iovecs, and room for a name and for control data in either direction.
Names and control data of the two directions lie apart: what is received never becomes what is sent.

Only for Linux on machines with 64-bit words; elsewhere :func:`load` says so. A call takes 0.45 us with arguments made
beforehand and no declared types, 0.77 with (CPython 3.11).

Source: recvmmsg(2), sendmmsg(2); Linux include/linux/socket.h.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import sys
from array import array
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from attrs import frozen

from safemem.block_seq import BlockSeq
from safemem.errors import error
from safemem.safecopy import address_of

HEADER: Final = 64
"""struct mmsghdr: name 0, namelen 8, iov 16, iovlen 24, control 32, controllen 40, flags 48, len 56."""

_HEAD: Final = struct.Struct("=QIxxxxQQQQixxxxIxxxx")
_IOVEC: Final = struct.Struct("=QQ")
_WORDS, _LONGS = HEADER // 4, HEADER // 8
_UNREACHED: Final = 0xFFFF_FFFF  # no datagram is so long


def is_native() -> bool:
    """Whether this host's mmsghdr is the one of this module."""
    return sys.platform == "linux" and struct.calcsize("P") == struct.calcsize("l") == 8


@frozen
class _Part:
    """A part of the memory: ``stride`` bytes from ``start`` on for the first message, behind them for the next."""

    start: int
    stride: int

    def at(self, i: int) -> int:
        return self.start + i * self.stride


class _Side:
    """What all headers say for one direction: where names and control data lie, and how many bytes of them."""

    def __init__(self, size: int, address: int, names: _Part, controls: _Part) -> None:
        self.names = memoryview(array("Q", [address + names.at(i) for i in range(size)]))
        self.controls = memoryview(array("Q", [address + controls.at(i) for i in range(size)]))
        self.name_lengths = memoryview(array("I", [0]) * size)
        self.control_lengths = memoryview(array("Q", [0]) * size)


class MMsgHeaders:
    """``size`` message headers. Which memory they point to is the caller's to keep alive."""

    def __init__(
        self, size: int, max_iov: int, name_size: int, name_out: int, control_in: int, control_out: int
    ) -> None:
        """The sizes are in bytes, for a message, of what comes in and what goes out; 0 receives none."""
        self.max_iov = max_iov
        self.name_size = name_size
        self.control_in = control_in
        self.control_out: int = control_out + -control_out % 8
        parts: list[_Part] = []
        end = 0
        names = (name_size + -name_size % 16, name_out + -name_out % 16)
        for stride in (HEADER, max_iov * _IOVEC.size, *names, control_in + -control_in % 8, self.control_out):
            parts.append(_Part(end, stride))
            end += size * stride
        _, self._iovecs, self._names_in, self._names_out, self._controls_in, self._controls_out = parts
        # Private to this process: a child must not scribble on headers that its parent uses.
        self._memory = memoryview(
            mmap.mmap(-1, max(end, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, "MAP_PRIVATE")
            else bytearray(end)
        )
        self.address: int = address_of(self._memory)
        self._map_fields(self._memory[: size * HEADER])
        self._send = _Side(size, self.address, self._names_out, self._controls_out)
        self._receive = _Side(size, self.address, self._names_in, self._controls_in)
        self._receive.name_lengths[:] = memoryview(array("I", [name_size]) * size)
        self._receive.control_lengths[:] = memoryview(array("Q", [control_in]) * size)
        if not name_size:
            # Linux stores a name's length even where 0 bytes of it were asked for: the next call would believe it.
            self._receive.names[:] = memoryview(array("Q", [0]) * size)
        self._receiving: bool | None = None
        # What was received, apart from what the next call is told: a call that fails, or sends, does not change it.
        self._results = memoryview(bytearray(size * HEADER))
        words = self._results.cast("I")
        self.lengths: memoryview = words[14::_WORDS]
        self.flags: memoryview = words[12::_WORDS]
        self.got_names: memoryview = words[2::_WORDS]
        self._got_controls = self._results.cast("Q")[5::_LONGS]
        # The first 8 bytes of an IPv4 name are its family, port and address: all that it says.
        found = self._memory[self._names_in.start : self._names_out.start]
        self.name_keys: memoryview = found.cast("Q")[:: self._names_in.stride // 8 or 1]

    def _map_fields(self, heads: memoryview) -> None:
        """A strided view of each field of the headers, and the address of each message's iovecs."""
        for i in range(len(heads) // HEADER):
            _HEAD.pack_into(heads, i * HEADER, 0, 0, self.address + self._iovecs.at(i), 0, 0, 0, 0, 0)
        words, longs = heads.cast("I"), heads.cast("Q")
        self._heads = heads
        self._lengths = words[14::_WORDS]
        self.name_lengths: memoryview = words[2::_WORDS]
        self._names = longs[0::_LONGS]
        self._iov_lengths = longs[3::_LONGS]
        self._controls = longs[4::_LONGS]
        self.control_lengths: memoryview = longs[5::_LONGS]
        # The headers as a receive finds them, which changes them: one copy of all is quicker than one of each field.
        self._fresh = memoryview(bytearray(heads))
        self._fresh_iov_lengths = self._fresh.cast("Q")[3::_LONGS]

    def point(self, i: int, blocks: BlockSeq) -> None:
        """Have message i lie in these blocks, at most ``max_iov`` of them, none of which needs safecopy."""
        at = self._iovecs.at(i)
        count = 0
        for block in blocks:
            _IOVEC.pack_into(self._memory, at, block.address, len(block))
            at += _IOVEC.size
            count += 1
        self._iov_lengths[i] = self._fresh_iov_lengths[i] = count

    def name(self, i: int) -> bytes:
        """The sockaddr that message i came with."""
        at = self._names_in.at(i)
        return bytes(self._memory[at : at + min(self.got_names[i], self.name_size)])

    def control(self, i: int) -> bytes:
        """The control data that message i came with."""
        at = self._controls_in.at(i)
        return bytes(self._memory[at : at + min(self._got_controls[i], self.control_in)])

    def set_name(self, i: int, name: bytes) -> None:
        """Have message i go to a sockaddr, or, if it is empty, where the socket is connected to."""
        at = self._names_out.at(i)
        self._memory[at : at + len(name)] = name
        self._send.name_lengths[i] = len(name)
        self._receiving = None

    def set_control(self, i: int, control: bytes) -> None:
        """Have message i go with this control data. Raises ValueError if there is no room for it."""
        if len(control) > self.control_out:
            raise ValueError(f"{len(control)} bytes of control data where {self.control_out} fit: set control_len")
        at = self._controls_out.at(i)
        self._memory[at : at + len(control)] = control
        self._send.control_lengths[i] = len(control)
        self._receiving = None

    def prepare(self, receiving: bool) -> None:
        """Set what the kernel reads of the headers, for the other direction than before."""
        if receiving is self._receiving:
            return
        side = self._receive if receiving else self._send
        self._names[:] = side.names
        self._controls[:] = side.controls
        self.name_lengths[:] = side.name_lengths
        self.control_lengths[:] = side.control_lengths
        if receiving:
            self._lengths[:] = memoryview(array("I", [_UNREACHED]) * len(self._lengths))
            self._fresh[:] = self._heads
        self._receiving = receiving

    def reached(self, n: int) -> int:
        """How many of the first n messages the kernel has received since the last note: it stores a length with each.

        That holds even if an interrupt came between the call and its result.
        """
        if not self._receiving:
            return 0
        lengths = self._lengths[:n].tolist()
        return lengths.index(_UNREACHED) if _UNREACHED in lengths else n

    def note(self, n: int) -> None:
        """Keep what a receive has told of the first n messages, and have them as the next one needs them."""
        end = n * HEADER
        self._results[:end] = self._heads[:end]
        self._heads[:end] = self._fresh[:end]


Call = Callable[[int, int, int, int], int]
"""``call(fd, address of the headers, how many, flags)`` -> how many were done. Raises OSError."""


@cache
def load(name: str) -> Call | OSError:
    """recvmmsg or sendmmsg, by name, or why this host cannot call it."""
    import ctypes

    refusal = error(errno.ENOSYS, name)
    if not is_native():
        return refusal
    try:
        # Who calls it never waits in it, so the GIL is kept: three times as many datagrams beside a busy thread.
        function: Any = getattr(ctypes.PyDLL(None, use_errno=True), name)
    except (AttributeError, OSError, TypeError):
        return refusal
    get_errno, pointer = ctypes.get_errno, ctypes.c_void_p

    def call(fd: int, address: int, n: int, flags: int) -> int:
        done: int = function(fd, pointer(address), n, flags, None)
        if done < 0:
            code = get_errno()
            raise OSError(code, f"{name}: {os.strerror(code)}")
        return done

    return call
