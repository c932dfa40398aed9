"""RemoteIO: the whole of IO for memory that can only be read and written by calls.

Another process, a debugger, an emulator's own memory: there are no host blocks to give to a Reader or Writer, only
``read(addr, buffer) -> n`` and ``write(addr, buffer) -> n``. The contract follows from these two so:

- A call that moves less than asked does not say why: the memory may end there, a packet may be full, or the call may
  do all or nothing. So after a short call the rest is tried from where it stopped, first to the end of that page:
  rights and mappings change at page ends only, so if nothing of a page's rest can be moved its first byte is the fault.
  After a page that could be moved, pieces double, and halve again where one fails. Nothing is moved twice.
- ``copy_in_to`` reads into a buffer of at most 16 MiB, and calls the Writer with what could be read.
- ``copy_out_from`` asks :meth:`RemoteIO.writable` first, so that the Reader is called with exactly as much as can be
  written. Memory may go away in between: what the Reader gave and could not be stored is kept, and comes first when the
  same Reader is used again.
- Nothing is atomic against whoever runs there, so the calls that promise it are refused.
"""

from __future__ import annotations

import errno
from abc import abstractmethod
from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, Never

from hostarch import READ, WRITE, AccessType, AddrRangeSeq, Arch
from safemem import BlockSeq, Reader, Writer
from safemem.buffers import check_count, check_int, readable_view, writable_view
from safemem.errors import add_transferred, error, moved_count
from usermem.errors import FaultError, FaultReason, bytes_before, cut_short
from usermem.iovec import UIO_MAXIOV
from usermem.memories.ranges import Ranges, first_bytes
from usermem.memories.undelivered import Undelivered
from usermem.memory_io import IO, checked_start
from usermem.resolver import Found, addr_at, moved
from usermem.strings import copy_string_in_chunks

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

# What a Reader or Writer is given at most, in bytes: it is held here meanwhile. More is a short count.
_STAGED: Final = 1 << 24
_PIECE: Final = 1 << 20
# A call costs more than the bytes it moves, so most strings are read by one.
_STRING: Final = 512
_ZEROS: Final = memoryview(bytes(1 << 16))


class RemoteIO(IO):
    """An IO over ``read`` and ``write``. Subclasses give ``arch`` and these two, and more where they know better.

    Addresses that they are called with lie in user space and have no tag.
    """

    arch: Arch

    def __init__(self, arch: Arch) -> None:
        self.arch = arch
        self._undelivered = Undelivered()

    # --- what a memory is

    @abstractmethod
    def read(self, addr: int, buffer: memoryview, *, ignore_permissions: bool = False) -> int:
        """Fill a prefix of the buffer with the bytes at addr and return its length; 0 if there are none.

        Less than all may have any reason. A FaultError counts as its ``transferred``, and gives the fault's reason;
        other exceptions pass through to whoever made the access.
        """

    @abstractmethod
    def write(self, addr: int, buffer: memoryview, *, ignore_permissions: bool = False) -> int:
        """Store a prefix of the buffer at addr and return its length. As :meth:`read`."""

    def readv(self, ranges: Ranges, buffer: memoryview, *, ignore_permissions: bool = False) -> int:
        """As :meth:`read`, from several ranges one after the other; the buffer has their size.

        None of them is empty, and there are at most 1,024 (UIO_MAXIOV).
        """
        return _each(self.read, ranges, buffer, ignore_permissions)

    def writev(self, ranges: Ranges, buffer: memoryview, *, ignore_permissions: bool = False) -> int:
        """As :meth:`write`, to several ranges one after the other."""
        return _each(self.write, ranges, buffer, ignore_permissions)

    def writable(self, addr: int, length: int, *, ignore_permissions: bool = False) -> int:
        """How many of ``length`` bytes from addr on can be written. At most 16 MiB are asked for.

        To know it without help, this reads a byte of each page and writes it back: what somebody else stores there in
        between is lost. A memory that knows its mappings, or may run meanwhile, has a better way.
        """
        done, byte, page = 0, memoryview(bytearray(1)), self.arch.page_size
        while done < length:
            at = addr + done
            if not all(_call(call, at, byte, ignore_permissions)[0] for call in (self.read, self.write)):
                return done
            done += page - at % page
        return length

    def writablev(self, ranges: Ranges, *, ignore_permissions: bool = False) -> int:
        """As :meth:`writable`, of several ranges one after the other, none of them empty, and however many."""
        room = 0
        for addr, length in ranges:
            n = self.writable(addr, length, ignore_permissions=ignore_permissions)
            room += moved_count(n, length, "writable()")
            if n < length:
                break
        return room

    def reason(self, addr: int, access: AccessType, *, ignore_permissions: bool = False) -> FaultReason:
        """Why addr cannot be accessed, when ``read`` or ``write`` has just moved nothing there."""
        return FaultReason.UNMAPPED

    # --- IO

    def copy_out(self, addr: int, src: ReadableBuffer, *, ignore_permissions: bool = False) -> int:
        with readable_view(src, "src") as view:
            return self._copy_one(check_int(addr, "addr"), view, WRITE, ignore_permissions)

    def copy_in(self, addr: int, dst: WriteableBuffer, *, ignore_permissions: bool = False) -> int:
        with writable_view(dst, "dst") as view:
            return self._copy_one(check_int(addr, "addr"), view, READ, ignore_permissions)

    def read_bytes(self, addr: int, n: int, *, ignore_permissions: bool = False) -> bytes:
        """The n bytes at addr. Raises FaultError with the bytes before it in ``partial``; ValueError if n < 0."""
        addr, n = check_int(addr, "addr"), check_count(n, "n")
        data = piece = bytearray()
        try:
            checked_start(addr, n, self.arch, READ)
            while True:
                piece = bytearray(min(n - len(data), _PIECE))  # a guest may name more than a host has
                self.copy_in(addr + len(data), piece, ignore_permissions=ignore_permissions)
                if len(piece) == n:
                    return bytes(piece)
                data += piece
                if len(data) == n:
                    return bytes(data)
        except BaseException as exc:
            add_transferred(exc, len(data))
            if isinstance(exc, OSError):
                cut_short(exc, bytes((data + piece)[: bytes_before(exc)]))
            raise

    def copy_struct_in(self, addr: int, layout: Struct, *, ignore_permissions: bool = False) -> tuple[Any, ...]:
        """usermem.copy_struct_in."""
        return layout.unpack(self.read_bytes(addr, layout.size, ignore_permissions=ignore_permissions))

    def copy_string_in(self, addr: int, maxlen: int, *, ignore_permissions: bool = False) -> bytes:
        """usermem.copy_string_in, in larger reads."""
        return copy_string_in_chunks(self, addr, maxlen, ignore_permissions=ignore_permissions, first=_STRING)

    def copy_in_vec(self, ars: AddrRangeSeq, dst: WriteableBuffer, *, ignore_permissions: bool = False) -> int:
        """usermem.copy_in_vec, with all ranges in one call."""
        with writable_view(dst, "dst") as view:
            return self._copy(first_bytes(ars.pairs(), len(view)), view, READ, ignore_permissions)

    def copy_out_vec(self, ars: AddrRangeSeq, src: ReadableBuffer, *, ignore_permissions: bool = False) -> int:
        """usermem.copy_out_vec, with all ranges in one call."""
        with readable_view(src, "src") as view:
            return self._copy(first_bytes(ars.pairs(), len(view)), view, WRITE, ignore_permissions)

    def zero_out(self, addr: int, n: int, *, ignore_permissions: bool = False) -> int:
        addr, n = check_int(addr, "addr"), check_count(n, "n")
        checked_start(addr, n, self.arch, WRITE)
        done = 0
        while True:
            with _ZEROS[: n - done] as zeros:
                try:
                    done += self._copy_one(addr + done, zeros, WRITE, ignore_permissions)
                except BaseException as exc:
                    add_transferred(exc, done)
                    raise
            if done == n:
                return done

    def copy_in_to(self, ars: AddrRangeSeq, writer: Writer, *, ignore_permissions: bool = False) -> int:
        return moved(writer.write_from_blocks, self._found(ars, ignore_permissions), ars.pairs(), READ)

    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, *, ignore_permissions: bool = False) -> int:
        return moved(
            lambda dsts: self._deliver(ars, dsts, reader, ignore_permissions),
            self._room(ars, ignore_permissions),
            ars.pairs(),
            WRITE,
        )

    def swap_uint32(self, addr: int, new: int, *, ignore_permissions: bool = False) -> int:
        """Raises OSError (EOPNOTSUPP): see the module."""
        self._refuse_atomics()

    def compare_and_swap_uint32(self, addr: int, old: int, new: int, *, ignore_permissions: bool = False) -> int:
        """Raises OSError (EOPNOTSUPP): see the module."""
        self._refuse_atomics()

    def load_uint32(self, addr: int, *, ignore_permissions: bool = False) -> int:
        """Raises OSError (EOPNOTSUPP): see the module."""
        self._refuse_atomics()

    def _refuse_atomics(self) -> Never:
        name = type(self).__name__
        raise error(errno.EOPNOTSUPP, f"{name} is reached by calls, so nothing in it is atomic against who runs there")

    # --- how

    def _copy_one(self, addr: int, view: memoryview, access: AccessType, ignore_permissions: bool) -> int:
        """Move the bytes between a view and one range, by one call if that moves all."""
        length = len(view)
        start = checked_start(addr, length, self.arch, access)
        if not length:
            return 0
        n, _ = _call(self.write if access is WRITE else self.read, start, view, ignore_permissions)
        if n == length:
            return n
        fault = None
        try:
            with view[n:] as rest:
                more, fault = self._walk(start + n, rest, access, ignore_permissions)
            if fault is not None:
                fault.address = addr + n + more
                raise fault
        except BaseException as exc:
            add_transferred(exc, n)
            raise
        finally:
            del fault
        return length

    def _copy(self, pairs: Ranges, view: memoryview, access: AccessType, ignore_permissions: bool) -> int:
        """Move the bytes between a view and ranges no larger than it. A range is checked when it is reached."""
        ranges: list[tuple[int, int]] = []
        outside: FaultError | None = None
        for addr, length in pairs:
            try:
                ranges.append((checked_start(addr, length, self.arch, access), length))
            except FaultError as exc:
                outside = exc.with_traceback(None)
                break
        done, fault = self._move(ranges, view, access, ignore_permissions)
        if fault is not None:
            fault.address = addr_at(pairs, done)
        elif outside is not None:
            fault = outside
            fault.transferred = done
        if fault is not None:
            try:
                raise fault
            finally:
                del fault, outside
        return done

    def _move(
        self, ranges: Ranges, view: memoryview, access: AccessType, ignore_permissions: bool
    ) -> tuple[int, FaultError | None]:
        """Move bytes between a view and ranges no larger than it: how many, and what stopped it.

        Calls that are short get fewer ranges the next time, so that many short ones cost no more than as many ranges.
        """
        one, many = (self.write, self.writev) if access is WRITE else (self.read, self.readv)
        ranges = [each for each in ranges if each[1]]
        done, first, most = 0, 0, UIO_MAXIOV
        while first < len(ranges):
            batch = ranges[first : first + most]
            most = min(2 * most, UIO_MAXIOV)
            try:
                with view[done : done + sum(length for _, length in batch)] as part:
                    if len(batch) == 1:
                        n, _ = _call(one, batch[0][0], part, ignore_permissions)
                    else:
                        n, _ = _call(many, batch, part, ignore_permissions)
                for addr, length in batch:
                    first += 1
                    done += min(n, length)
                    if n < length:
                        most = max(len(batch) // 2, 1)
                        with view[done : done + length - n] as part:
                            n, fault = self._walk(addr + n, part, access, ignore_permissions)
                        done += n
                        if fault is not None:
                            fault.transferred = done
                            return done, fault
                        break
                    n -= length
            except BaseException as exc:
                add_transferred(exc, done)
                raise
        return done, None

    def _walk(
        self, addr: int, view: memoryview, access: AccessType, ignore_permissions: bool
    ) -> tuple[int, FaultError | None]:
        """Move bytes from where a call stopped: how many can be, and what stops them.

        First to the end of the page; pieces then double while they can be moved, and halve where nothing of one can.
        """
        call, page = self.write if access is WRITE else self.read, self.arch.page_size
        done, pages = 0, 1
        while True:
            if done == len(view):
                return done, None
            at = addr + done
            end = min((at // page + pages) * page, addr + len(view))
            try:
                with view[done : end - addr] as part:
                    n, reason = _call(call, at, part, ignore_permissions)
                pages = 2 * pages if n else ((end - 1) // page - at // page + 1) // 2
                if not pages:
                    reason = reason or self.reason(at, access, ignore_permissions=ignore_permissions)
                    return done, FaultError(at, access, reason, done)
            except BaseException as exc:
                add_transferred(exc, done)
                raise
            done += n

    def _found(self, ars: AddrRangeSeq, ignore_permissions: bool) -> Found:
        """A copy of the bytes at ars up to a fault, and the fault. Raises FaultError if a range leaves user space."""
        ranges, total = self._staged(ars, READ)
        view = memoryview(bytearray(total))
        n, fault = self._move(ranges, view, READ, ignore_permissions)
        if fault is not None:
            fault.address = addr_at(ars.pairs(), n)
        return BlockSeq.unchecked([view[:n]] if n else [], n), fault

    def _staged(self, ars: AddrRangeSeq, access: AccessType) -> tuple[Ranges, int]:
        """The ranges without tags, cut to what is staged of them, and how much. Raises FaultError if one is outside."""
        ranges = [(checked_start(addr, length, self.arch, access), length) for addr, length in ars.pairs()]
        total = min(ars.num_bytes, _STAGED)
        return first_bytes(ranges, total), total

    def _room(self, ars: AddrRangeSeq, ignore_permissions: bool) -> Found:
        """A buffer for the bytes at ars that can be written, and what stops them. Raises as :meth:`_found`."""
        ranges, total = self._staged(ars, WRITE)
        fault = None
        room = self.writablev([each for each in ranges if each[1]], ignore_permissions=ignore_permissions)
        if room < total:
            at = addr_at(ranges, room)
            reason = self.reason(at, WRITE, ignore_permissions=ignore_permissions)
            fault = FaultError(addr_at(ars.pairs(), room), WRITE, reason)
        return BlockSeq.unchecked([memoryview(bytearray(room))] if room else [], room), fault

    def _deliver(self, ars: AddrRangeSeq, dsts: BlockSeq, reader: Reader, ignore_permissions: bool) -> int:
        """Store what a Reader gives for dsts, or has given before, and raise what it raised when all is stored.

        What cannot be stored is kept.
        """
        given = self._undelivered.take(reader, dsts)
        data, stopped = given.data, given.error
        n = min(len(data), dsts.num_bytes)
        done = 0
        fault: BaseException | None = None
        try:
            try:
                done, fault = self._move(first_bytes(self._staged(ars, WRITE)[0], n), data, WRITE, ignore_permissions)
            except BaseException as exc:
                done, fault = getattr(exc, "transferred", 0), exc
            if fault is not None or n < len(data):
                self._undelivered.keep(reader, data[done:], stopped, done)
                stopped = None
            if isinstance(fault, FaultError):
                fault.address = addr_at(ars.pairs(), done)
            if stopped is not None:
                add_transferred(stopped, done - getattr(stopped, "transferred", 0))
                fault = stopped
            if fault is not None:
                raise fault
            return done
        finally:
            del fault, stopped, given


def _call(
    call: Callable[..., int], where: int | Ranges, part: memoryview, ignore: bool
) -> tuple[int, FaultReason | None]:
    """What a primitive moved, and the reason for a fault if it gave one."""
    try:
        n = call(where, part, ignore_permissions=ignore)
    except FaultError as fault:
        return moved_count(fault.transferred, len(part), "the fault of the memory"), fault.reason
    if type(n) is not int or not 0 <= n <= len(part):
        n = moved_count(n, len(part), f"{getattr(call, '__name__', call)}()")
    return n, None


def _each(call: Callable[..., int], ranges: Ranges, buffer: memoryview, ignore: bool) -> int:
    """Call a primitive for one range after the other, until one is short."""
    done = 0
    for addr, length in ranges:
        try:
            with buffer[done : done + length] as part:
                n, _ = _call(call, addr, part, ignore)
        except BaseException as exc:
            add_transferred(exc, done)
            raise
        done += n
        if n < length:
            break
    return done
