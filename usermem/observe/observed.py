"""ObservedIO: an IO over another one, in which every access passes through one place.

The eight methods of the contract make an :class:`Access` of their arguments. Two methods then see it: ``_make``, which
carries it out on the memory beneath and may do something else before (inject a fault, change a byte), and ``_after``,
which sees how it ended. All observers are subclasses with one or both of these.

- An observer offers none of the faster methods that an IO may have, so that strings, integers, iovecs and descriptors
  come down to the eight and are seen.
- Observers may wrap each other, in any order.
- No lock is held while an access runs. A Reader, Writer or callback may access the same memory again; what a callback
  of an observer accesses is not observed, by none of the observers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from hostarch import READ, READ_WRITE, WRITE, AddrRangeSeq, Arch
from safemem import Reader, Writer
from safemem.buffers import check_count, check_int, readable_view
from usermem.errors import FaultError
from usermem.memory_io import IO, arch_of
from usermem.observe.access import ATOMICS, Access
from usermem.observe.system_call import SystemCall

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_P = ParamSpec("_P")
_T = TypeVar("_T")

_UNSEEN: Final[ContextVar[bool]] = ContextVar("usermem_unseen", default=False)


def unseen(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a function of the user's; no observer sees what it accesses."""
    before = _UNSEEN.get()
    try:
        _UNSEEN.set(True)
        return function(*args, **kwargs)
    finally:
        _UNSEEN.set(before)  # an interrupt could lose the token for a reset


def size_of(buffer: ReadableBuffer, name: str) -> int:
    """How many bytes a buffer has. Raises TypeError, naming the argument, if it is none."""
    kind = type(buffer)
    if kind is bytearray or kind is bytes:  # a view takes 0.2 us
        return len(buffer)  # type: ignore[arg-type]
    with readable_view(buffer, name) as view:
        return len(view)


def memory_of(io: IO) -> IO:
    """The memory beneath all observers."""
    while isinstance(io, ObservedIO):
        io = io.io
    return io


class ObservedIO(IO):
    """The base of all observers: the contract over ``io``, the memory beneath. It belongs to the same machine.

    It finds the same futex keys, so that words of shared memory are the same through it. Private words belong to the
    IO: use either the observer or the memory beneath for all of them.
    """

    _excludes: Callable[[str, int, object], bool] | None = None
    """Whether an access is passed on unseen, given its call, its address or ranges, and its buffer or length."""

    def __init__(self, io: IO) -> None:
        """Raises TypeError if io has not the methods of an IO."""
        if not hasattr(io, "copy_out_from"):
            raise TypeError(f"io must be an IO, not {type(io).__name__}")
        self.arch: Arch = arch_of(io)
        self.io = io
        find = getattr(io, "futex_key", None)
        if find is not None:
            self.futex_key = find

    def call(self, name: str, *args: object, **options: Any) -> SystemCall:
        """A system call, to be used in a ``with``, which all observers see: see :class:`SystemCall`."""
        call = SystemCall(name, args, **options)
        self._state(call)
        return call

    def copy_out(self, addr: int, src: ReadableBuffer, *, ignore_permissions: bool = False) -> int:
        if (self._excludes is not None and self._excludes("copy_out", addr, src)) or _UNSEEN.get():
            return self.io.copy_out(addr, src, ignore_permissions=ignore_permissions)
        addr = check_int(addr, "addr")
        access = Access("copy_out", WRITE, addr, size_of(src, "src"), ignore_permissions=ignore_permissions)
        return self._see(access, (addr, src))

    def copy_in(self, addr: int, dst: WriteableBuffer, *, ignore_permissions: bool = False) -> int:
        if (self._excludes is not None and self._excludes("copy_in", addr, dst)) or _UNSEEN.get():
            return self.io.copy_in(addr, dst, ignore_permissions=ignore_permissions)
        addr = check_int(addr, "addr")
        access = Access("copy_in", READ, addr, size_of(dst, "dst"), ignore_permissions=ignore_permissions)
        return self._see(access, (addr, dst))

    def zero_out(self, addr: int, n: int, *, ignore_permissions: bool = False) -> int:
        if (self._excludes is not None and self._excludes("zero_out", addr, n)) or _UNSEEN.get():
            return self.io.zero_out(addr, n, ignore_permissions=ignore_permissions)
        addr, n = check_int(addr, "addr"), check_count(n, "n")
        return self._see(Access("zero_out", WRITE, addr, n, ignore_permissions=ignore_permissions), (addr, n))

    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, *, ignore_permissions: bool = False) -> int:
        if (self._excludes is not None and self._excludes("copy_out_from", 0, ars)) or _UNSEEN.get():
            return self.io.copy_out_from(ars, reader, ignore_permissions=ignore_permissions)
        addr, _ = next(ars.pairs(), (0, 0))
        access = Access("copy_out_from", WRITE, addr, ars.num_bytes, ars, ignore_permissions=ignore_permissions)
        return self._see(access, (ars, reader))

    def copy_in_to(self, ars: AddrRangeSeq, writer: Writer, *, ignore_permissions: bool = False) -> int:
        if (self._excludes is not None and self._excludes("copy_in_to", 0, ars)) or _UNSEEN.get():
            return self.io.copy_in_to(ars, writer, ignore_permissions=ignore_permissions)
        addr, _ = next(ars.pairs(), (0, 0))
        access = Access("copy_in_to", READ, addr, ars.num_bytes, ars, ignore_permissions=ignore_permissions)
        return self._see(access, (ars, writer))

    def swap_uint32(self, addr: int, new: int, *, ignore_permissions: bool = False) -> int:
        if (self._excludes is not None and self._excludes("swap_uint32", addr, 4)) or _UNSEEN.get():
            return self.io.swap_uint32(addr, new, ignore_permissions=ignore_permissions)
        addr = check_int(addr, "addr")
        return self._see(Access("swap_uint32", READ_WRITE, addr, 4, ignore_permissions=ignore_permissions), (addr, new))

    def compare_and_swap_uint32(self, addr: int, old: int, new: int, *, ignore_permissions: bool = False) -> int:
        if (self._excludes is not None and self._excludes("compare_and_swap_uint32", addr, 4)) or _UNSEEN.get():
            return self.io.compare_and_swap_uint32(addr, old, new, ignore_permissions=ignore_permissions)
        addr = check_int(addr, "addr")
        access = Access("compare_and_swap_uint32", READ_WRITE, addr, 4, ignore_permissions=ignore_permissions)
        return self._see(access, (addr, old, new))

    def load_uint32(self, addr: int, *, ignore_permissions: bool = False) -> int:
        if (self._excludes is not None and self._excludes("load_uint32", addr, 4)) or _UNSEEN.get():
            return self.io.load_uint32(addr, ignore_permissions=ignore_permissions)
        addr = check_int(addr, "addr")
        return self._see(Access("load_uint32", READ, addr, 4, ignore_permissions=ignore_permissions), (addr,))

    def _see(self, access: Access, args: tuple[Any, ...]) -> int:
        """Carry out an access, complete its value, and show it to :meth:`_after`, whether it failed or not."""
        try:
            result = self._make(access, args)
        except BaseException as exc:
            access.moved = getattr(exc, "transferred", 0)
            if isinstance(exc, FaultError):
                access.fault = FaultError(exc.address, exc.access, exc.reason, exc.transferred)
            else:
                access.error = type(exc).__name__
            self._after(access)
            raise
        access.moved = 4 if access.call in ATOMICS else result
        self._after(access)
        return result

    def _make(self, access: Access, args: tuple[Any, ...]) -> int:
        """Carry out an access on the memory beneath, by the arguments of its method."""
        method: Callable[..., int] = getattr(self.io, access.call)
        if not access.ignore_permissions:
            return method(*args)  # a keyword takes 0.1 us
        return method(*args, ignore_permissions=True)

    def _after(self, access: Access) -> None:
        """See an access that has ended. What this raises comes out of the access, whose bytes have moved."""

    def _new_state(self) -> Any:
        """What this observer knows of one system call, when it begins."""

    def _state(self, call: SystemCall) -> Any:
        """What this observer knows of a system call."""
        try:
            return call.states[self]
        except KeyError:
            return call.states.setdefault(self, self._new_state())

    def call_ended(self, call: SystemCall) -> None:
        """See the end of a system call in which this observer has seen something, or which it has begun."""
