"""Operations: calls on user memory as values, which can be drawn, shrunk, run on two memories, and compared.

``outcome(operation, io)`` runs one and tells all that its caller can see: the count or value, the bytes that were
read, the fault with everything it says, what a reader or writer was called with. Two memories that keep the contract
and hold the same give equal outcomes.
"""

from __future__ import annotations

import errno
import os
import pickle
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from attrs import Attribute, field, fields, frozen

from hostarch import READ, AddrRangeSeq
from safemem import BlockSeq, HostFaultError
from usermem.errors import FaultError, FaultReason, NameTooLongError
from usermem.iovec import copy_out_iovecs, iovecs_io_sequence
from usermem.memory_io import IO
from usermem.strings import copy_string_in
from usermem.testing.model import ModelMemory
from usermem.vec import copy_in_vec, copy_out_vec, zero_out_vec

_UNTOUCHED = b"\xee"
_PATTERN = bytes(1 + 7 * i % 251 for i in range(251))


class StreamError(Exception):
    """What a reader or writer of an operation raises."""


class StreamOSError(OSError):
    """The same, with an errno: EIO."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, os.strerror(errno.EIO))


def stream_fault() -> FaultError:
    """A fault of a reader's or writer's own memory, as a copy between two guests has it."""
    return FaultError(0xDEAD000, READ, FaultReason.UNMAPPED)


def stream_host_fault() -> HostFaultError:
    """A host fault of a reader's or writer's own memory."""
    return HostFaultError(0xDEAD000, signal.SIGBUS)


@frozen
class Temper:
    """How a reader or writer behaves: it moves at most ``most`` bytes (None: all), then raises ``error()`` if set.

    The error carries the bytes that were moved in ``transferred``, if there are any. With ``message`` it is
    message-oriented.
    """

    most: int | None = None
    error: Callable[[], BaseException] | None = field(
        default=None, repr=lambda error: getattr(error, "__name__", "None")
    )
    message: bool = False


ALL = Temper()


@frozen(repr=False)
class Operation(ABC):
    """One call on user memory."""

    ignore_permissions: bool = field(default=False, kw_only=True)

    @abstractmethod
    def run(self, io: IO) -> Any:
        """Make the call, and return all that the caller sees. What the IO raises passes through."""

    @property
    @abstractmethod
    def at(self) -> int:
        """The address that the call is about."""

    @property
    def _how(self) -> dict[str, bool]:
        return {"ignore_permissions": self.ignore_permissions}

    def __repr__(self) -> str:
        """The call as it would be written, without the options that are not set."""

        def words(attribute: Attribute[Any]) -> str:
            value = getattr(self, attribute.name)
            return hex(value) if attribute.name == "addr" else str(value) if attribute.name == "ars" else repr(value)

        shown = [a for a in fields(type(self)) if getattr(self, a.name) != a.default]
        shown.sort(key=lambda a: a.kw_only)
        return f"{type(self).__name__}({', '.join(f'{a.name}={words(a)}' for a in shown)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """For hypothesis and IPython: the same, not how a strategy came to it."""
        printer.text(repr(self))


@frozen(repr=False)
class _AtAddr(Operation):
    addr: int

    @property
    def at(self) -> int:
        return self.addr


@frozen(repr=False)
class _AtRanges(Operation):
    ars: AddrRangeSeq

    @property
    def at(self) -> int:
        return self.ars.head().start if self.ars else 0


@frozen(repr=False)
class CopyOut(_AtAddr):
    """IO.copy_out(addr, src)."""

    src: bytes

    def run(self, io: IO) -> Any:
        return io.copy_out(self.addr, self.src, **self._how)


@frozen(repr=False)
class CopyIn(_AtAddr):
    """IO.copy_in(addr, a buffer of n bytes)."""

    n: int

    def run(self, io: IO) -> Any:
        return _filling(self.n, lambda dst: io.copy_in(self.addr, dst, **self._how))


@frozen(repr=False)
class ZeroOut(_AtAddr):
    """IO.zero_out(addr, n)."""

    n: int

    def run(self, io: IO) -> Any:
        return io.zero_out(self.addr, self.n, **self._how)


@frozen(repr=False)
class CopyOutFrom(_AtRanges):
    """IO.copy_out_from(ars, a reader of that temper)."""

    reader: Temper = ALL

    def run(self, io: IO) -> Any:
        stream = _Stream(self.reader, _give)
        return stream.watch(lambda: io.copy_out_from(self.ars, stream, **self._how))


@frozen(repr=False)
class CopyInTo(_AtRanges):
    """IO.copy_in_to(ars, a writer of that temper)."""

    writer: Temper = ALL

    def run(self, io: IO) -> Any:
        stream = _Stream(self.writer, lambda srcs, n: srcs.tobytes().hex())
        return stream.watch(lambda: io.copy_in_to(self.ars, stream, **self._how))


@frozen(repr=False)
class SwapUint32(_AtAddr):
    """IO.swap_uint32(addr, new)."""

    new: int

    def run(self, io: IO) -> Any:
        return io.swap_uint32(self.addr, self.new, **self._how)


@frozen(repr=False)
class CompareAndSwapUint32(_AtAddr):
    """IO.compare_and_swap_uint32(addr, old, new); with ``old`` None, with what load_uint32 finds there."""

    old: int | None
    new: int

    def run(self, io: IO) -> Any:
        old = io.load_uint32(self.addr, **self._how) if self.old is None else self.old
        return io.compare_and_swap_uint32(self.addr, old, self.new, **self._how)


@frozen(repr=False)
class LoadUint32(_AtAddr):
    """IO.load_uint32(addr)."""

    def run(self, io: IO) -> Any:
        return io.load_uint32(self.addr, **self._how)


@frozen(repr=False)
class CopyStringIn(_AtAddr):
    """copy_string_in(io, addr, maxlen)."""

    maxlen: int

    def run(self, io: IO) -> Any:
        try:
            return copy_string_in(io, self.addr, self.maxlen, **self._how)
        except NameTooLongError as error:
            return "NameTooLongError", error.partial
        except FaultError as fault:
            return describe(fault), fault.partial


@frozen(repr=False)
class CopyInVec(_AtRanges):
    """copy_in_vec(io, ars, a buffer of n bytes)."""

    n: int

    def run(self, io: IO) -> Any:
        return _filling(self.n, lambda dst: copy_in_vec(io, self.ars, dst, **self._how))


@frozen(repr=False)
class CopyOutVec(_AtRanges):
    """copy_out_vec(io, ars, src)."""

    src: bytes

    def run(self, io: IO) -> Any:
        if isinstance(io, ModelMemory):  # it has its own, so as not to be judged by the library's
            return io.copy_out_vec(self.ars, self.src, **self._how)
        return copy_out_vec(io, self.ars, self.src, **self._how)


@frozen(repr=False)
class ZeroOutVec(_AtRanges):
    """zero_out_vec(io, ars, n)."""

    n: int

    def run(self, io: IO) -> Any:
        if isinstance(io, ModelMemory):
            return io.zero_out_vec(self.ars, self.n, **self._how)
        return zero_out_vec(io, self.ars, self.n, **self._how)


@frozen(repr=False)
class Readv(_AtAddr):
    """readv(2): an iovec table for ``ars`` is stored at addr, read back, and what it names is filled by a reader."""

    ars: AddrRangeSeq
    reader: Temper = ALL

    def run(self, io: IO) -> Any:
        copy_out_iovecs(io, self.addr, self.ars, **self._how)
        seq = iovecs_io_sequence(io, self.addr, len(self.ars), **self._how)
        return CopyOutFrom(seq.addrs, self.reader, **self._how).run(io)


KINDS: dict[str, tuple[type[Operation], ...]] = {
    "copies": (CopyOut, CopyIn, ZeroOut, CopyStringIn),
    "streams": (CopyOutFrom, CopyInTo, Readv),
    "vectors": (CopyOutVec, CopyInVec, ZeroOutVec),
    "atomics": (SwapUint32, CompareAndSwapUint32, LoadUint32),
}
"""All operations, by what they have in common."""


@frozen(repr=False)
class Refused(Operation):
    """An atomic call on an IO that has none."""

    call: Operation

    def run(self, io: IO) -> Any:
        try:
            return None if isinstance(io, ModelMemory) else self.call.run(io)
        except OSError as exc:
            if exc.errno != errno.EOPNOTSUPP:
                raise
            return None

    @property
    def at(self) -> int:
        return self.call.at

    def __repr__(self) -> str:
        return f"{self.call}, which must be refused (EOPNOTSUPP)"


@frozen
class Raised:
    """An exception that is no fault, as the outcome of a call: equal to another of the same type."""

    kind: str
    error: Exception = field(eq=False)

    def __repr__(self) -> str:
        return f"{self.kind}: {self.error}"


def outcome(operation: Operation, io: IO) -> Any:
    """What the operation gave on this IO, to be compared with another's and read: errors are told, none is raised."""
    try:
        return operation.run(io)
    except FaultError as fault:
        return describe(fault)
    except Exception as exc:  # whatever an IO raises is an answer, and may be a wrong one
        return Raised(type(exc).__name__, exc)


def describe(fault: FaultError) -> str:
    """All that a fault says, in words."""
    text = f"FaultError at {fault.address:#x} after {fault.transferred} bytes ({fault.access}, {fault.reason.value})"
    if type(fault) is FaultError and not vars(fault):
        return text  # nothing in it that could not be pickled: trying takes 10 us
    try:
        again = pickle.loads(pickle.dumps(fault))
    except Exception as exc:
        return f"{text}, which cannot be pickled: {exc}"
    same = (again.address, again.transferred) == (fault.address, fault.transferred)
    return text if same else f"{text}, which pickling changes"


def pattern(n: int) -> bytes:
    """n bytes in an order that shows a shift, none of them 0."""
    return (_PATTERN * (n // 251 + 1))[:n]


def _give(dsts: BlockSeq, n: int) -> None:
    dsts.fill(pattern(n))


def _filling(n: int, call: Callable[[bytearray], int]) -> Any:
    """The count or the fault, and the whole buffer: what lies behind a fault must not be touched."""
    dst = bytearray(_UNTOUCHED * n)
    try:
        result: Any = call(dst)
    except FaultError as fault:
        result = describe(fault) if fault.partial is None else f"{describe(fault)}, with a partial result"
    return result, "read", dst.hex()


class _Stream:
    """A Reader and a Writer of a temper, which notes what it was called with."""

    def __init__(self, temper: Temper, move: Callable[[BlockSeq, int], Any]) -> None:
        self.message_oriented = temper.message
        self._temper = temper
        self._move = move
        self._calls: list[Any] = []
        self._raised: BaseException | None = None

    def read_to_blocks(self, blocks: BlockSeq) -> int:
        most = self._temper.most
        n = blocks.num_bytes if most is None else min(most, blocks.num_bytes)
        moved = self._move(blocks, n)
        self._calls.append(blocks.num_bytes if moved is None else (blocks.num_bytes, moved))
        if self._temper.error is None:
            return n
        self._raised = self._temper.error()
        if n:
            self._raised.transferred = n  # type: ignore[attr-defined]
        raise self._raised

    write_from_blocks = read_to_blocks

    def watch(self, call: Callable[[], int]) -> Any:
        """What the call gave, and what it called the stream with."""
        try:
            result: Any = call()
        except BaseException as exc:
            if exc is self._raised:
                result = f"the same {type(exc).__name__} after {getattr(exc, 'transferred', 0)} bytes"
            elif isinstance(exc, FaultError):
                result = describe(exc)
            elif type(exc) is type(self._raised):
                result = f"another {type(exc).__name__}"
            else:
                raise
        return result, "called with", self._calls
