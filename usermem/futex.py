"""Futexes: who waits for which word of user memory, as Linux's futex(2) has it. Blocking is the simulator's.

A :class:`FutexTable` is one kernel's wait queues. :meth:`FutexTable.wait` compares the word and puts a
:class:`FutexWaiter` into the table, which calls the simulator's function when it is woken; a simulator lets its task
sleep until then, and calls :meth:`FutexWaiter.cancel` for a timeout or a signal.

Words are the same if their keys are equal (get_futex_key): of a :class:`Futex` that is ``private`` (FUTEX_PRIVATE_FLAG)
the memory and the address, else what the memory's ``futex_key`` says, so that all who map an object meet. A key is
taken when a call is made, and kept: whoever waits when the page is unmapped, moved by mremap or mapped anew goes on
waiting under the old key, as in Linux. A forked child's private memory is another memory: nobody waits there yet.

No lock is held while memory is read, for that may run the simulator's code. Instead each bucket knows that it changes:
a wait is begun only if nothing has changed in its bucket since before the word was read, else it is read again. So no
wake between the two is lost. A wake is a change, too, before it looks who waits; and who begins to wait is in the
bucket before it looks for changes. So a wake takes the lock only where somebody waits. Buckets are fixed, and a waiter
is in one in effect by its key and by being pending: entries that an interrupt left behind are passed over, and dropped
by the next who meets them. A function to be called goes from its waiter to the table's ``_due`` by one call in C, which
no interrupt divides, and is called from there.

Source: Linux kernel/futex/ (core.c, waitwake.c, requeue.c, syscalls.c); futex(2).
"""

from __future__ import annotations

import errno
import operator
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain, islice
from typing import Any, Final

from hostarch import READ, WRITE
from safemem.buffers import check_int
from safemem.errors import error
from safemem.fork import fork_safe_lock
from usermem.memory_io import IO, arch_of, checked_start
from usermem.mm.backing.backing import identity

FUTEX_BITSET_MATCH_ANY: Final = 0xFFFF_FFFF

_MASK: Final = 0xFFFF_FFFF
_BUCKETS: Final = 256
_FEW: Final = 8

Wake = Callable[[], object]
_Call = Iterator[object]
"""A function to be called: next() does so, once, whoever comes first."""


class Futex:
    """A word of user memory, 4 bytes at addr, as one system call names it."""

    __slots__ = ("addr", "io", "private")

    def __init__(self, io: IO, addr: int, *, private: bool = False) -> None:
        """``private`` is FUTEX_PRIVATE_FLAG: only who uses the same ``io`` and says so, too, meets this word.

        Nothing is accessed. All threads of a process use one ``io``; of one without a ``futex_key`` of its own
        (AddressSpace has it) the memory counts as private.
        """
        self.io: IO = io
        self.addr: int = addr if type(addr) is int else check_int(addr, "addr")
        self.private: bool = private

    def key(self, *, write: bool = False) -> tuple[Any, ...]:
        """What words are compared by. Raises OSError (EINVAL) if addr is no multiple of 4; FaultError.

        The page of a private word is not looked at. Any other must be readable, with ``write`` writable.
        """
        io, addr, access = self.io, self.addr, WRITE if write else READ
        if addr & 3:
            raise error(errno.EINVAL, f"futex at {addr:#x}")
        arch = arch_of(io)
        if not 0 <= addr <= arch.max_addr - 4:
            checked_start(addr, 4, arch, access)
        if self.private:
            return "private", identity(io), addr
        find = getattr(io, "futex_key", None)
        if find is not None:
            return ("shared", *find(addr, access))
        self.load()
        return "shared", identity(io), addr

    def load(self) -> int:
        """The word, by one atomic load. Raises FaultError."""
        return self.io.load_uint32(self.addr)


class _Bucket:
    """Some of those who wait, in their order. ``changes`` is another object after each change of that, or wake."""

    __slots__ = ("changes", "waiters")

    def __init__(self) -> None:
        # A dict that has lost its first entries is walked past all of them to find the next one.
        self.waiters: OrderedDict[FutexWaiter, None] = OrderedDict()
        self.changes = object()


class FutexWaiter:
    """A wait, from :meth:`FutexTable.wait`. It ends woken, and then its function is called, or cancelled."""

    __slots__ = ("_bitset", "_cancelled", "_key", "_pending", "_table")

    def __init__(self, table: FutexTable, key: tuple[Any, ...], wake: Wake, bitset: int) -> None:
        """Use :meth:`FutexTable.wait`."""
        self._table = table
        self._key = key
        self._bitset = bitset
        self._pending: list[_Call] = [map(operator.call, (wake,))]  # whoever takes it out decides how the wait ends
        self._cancelled: list[_Call] = []

    @property
    def waiting(self) -> bool:
        """Whether it is neither woken nor cancelled."""
        return bool(self._pending)

    def cancel(self) -> bool:
        """End the wait without a wake, for a timeout or a signal, and return whether it is.

        False if it was woken before: then the system call returns 0, and the function was called, or is about to be.
        """
        self._claim(self._cancelled)
        self._table._bucket(self._key).waiters.pop(self, None)
        self._table._call_due()
        return bool(self._cancelled)

    def _claim(self, into: list[_Call] | deque[_Call]) -> bool:
        """Move the function to a list, for good; False if somebody has."""
        try:
            into.extend(map(list.pop, (self._pending,)))
        except IndexError:
            return False
        return True


class FutexTable:
    """The wait queues of one simulated kernel, for all its address spaces. Safe to use from any thread.

    Numbers are the guest's: ``val``, ``op`` and bitsets are cut to 32 bits, counts are ints as C has them.
    """

    def __init__(self) -> None:
        self._buckets = [_Bucket() for _ in range(_BUCKETS)]
        self._due: deque[_Call] = deque()
        self._lock = fork_safe_lock()

    def wait(self, futex: Futex, val: int, wake: Wake, *, bitset: int = FUTEX_BITSET_MATCH_ANY) -> FutexWaiter:
        """FUTEX_WAIT, FUTEX_WAIT_BITSET: wait for the word if it is ``val``.

        ``wake()`` is called once, by the call that wakes, without a lock; possibly before this returns. (Where a signal
        handler raises just then, the table's next call calls it.) Raises OSError: EAGAIN if the word is another, EINVAL
        if addr is not aligned or the bitset empty; FaultError. Nobody waits then.
        """
        if self._due:
            self._call_due()
        bitset = _checked(bitset)
        key = futex.key()
        bucket = self._bucket(key)
        before = bucket.changes
        _compare(futex, val)
        waiter = FutexWaiter(self, key, wake, bitset)
        try:
            joined = False
            while True:
                with self._lock: joined = self._join(bucket, waiter, before)  # fmt: skip # noqa: E701
                if joined:
                    break
                before = bucket.changes
                _compare(futex, val)
        except BaseException:
            waiter.cancel()
            raise
        return waiter

    def wake(self, futex: Futex, n: int = 1, *, bitset: int = FUTEX_BITSET_MATCH_ANY) -> int:
        """FUTEX_WAKE, FUTEX_WAKE_BITSET: wake the first ``n`` who wait with a bit of the bitset; return how many.

        As Linux it wakes one if n is less. Raises OSError (EINVAL) as :meth:`wait`; FaultError. What a ``wake``
        function raises comes out when all others were called.
        """
        if bitset != FUTEX_BITSET_MATCH_ANY:
            bitset = _checked(bitset)
        if type(n) is not int or n >> 31:
            n = _int32(n)
        key = futex.key()
        bucket = self._buckets[hash(key) % _BUCKETS]
        count = 0
        bucket.changes = object()  # before the look: who is about to wait sees this, or is seen
        try:
            if bucket.waiters:
                with self._lock: count = self._wake(key, n, bitset)  # fmt: skip # noqa: E701
        finally:
            if self._due:
                self._call_due()
        return count

    def requeue(self, futex: Futex, other: Futex, n_wake: int, n_requeue: int, *, val: int | None = None) -> int:
        """FUTEX_REQUEUE, FUTEX_CMP_REQUEUE (``val``): wake ``n_wake``, let ``n_requeue`` more wait for ``other``.

        Returns how many both are. Raises OSError: EAGAIN if the word is not ``val``, EINVAL if a count is negative or
        an address not aligned; FaultError. Nothing has changed then.
        """
        n_wake, n_requeue = _int32(n_wake), _int32(n_requeue)
        if n_wake < 0 or n_requeue < 0:
            raise error(errno.EINVAL, f"{n_wake} to wake, {n_requeue} to requeue")
        key, other_key = futex.key(), other.key()
        bucket = self._bucket(key)
        count = -1
        try:
            while True:
                if count >= 0:
                    break
                before = None
                if val is not None:
                    before = bucket.changes
                    _compare(futex, val)
                with self._lock: count = self._requeue(key, other_key, (n_wake, n_requeue), before)  # fmt: skip # noqa: E701
        finally:
            if self._due:
                self._call_due()
        return count

    def wake_op(self, futex: Futex, other: Futex, n: int, n_other: int, op: int) -> int:
        """FUTEX_WAKE_OP: change the word of ``other``, wake ``n`` of ``futex``, and ``n_other`` of it by what it was.

        ``op`` is the encoded operation and comparison. Returns how many were woken. Raises OSError: ENOSYS if there is
        no such operation, or, after the word was changed, no such comparison; EINVAL; FaultError.
        """
        n, n_other = _int32(n), _int32(n_other)
        key, other_key = futex.key(), other.key(write=True)
        both = _operate(other, op & _MASK)
        try:
            # fmt: off
            with self._lock: count = self._wake(key, n) + (both and self._wake(other_key, n_other))  # noqa: E701
            # fmt: on
        finally:
            if self._due:
                self._call_due()
        return count

    def _call_due(self) -> None:
        """Call the functions of all who were woken, without a lock. If one raises, the others are called first."""
        while True:
            try:
                call = self._due[0]
            except IndexError:
                return
            try:
                next(call, None)
            except BaseException:
                self._called(call)
                self._call_due()
                raise
            self._called(call)

    def _called(self, call: _Call) -> None:
        with suppress(ValueError):  # another thread
            self._due.remove(call)

    def _bucket(self, key: tuple[Any, ...]) -> _Bucket:
        return self._buckets[hash(key) % _BUCKETS]

    def _join(self, bucket: _Bucket, waiter: FutexWaiter, before: object) -> bool:
        """Put a waiter into its bucket if nothing has changed there; under the lock, as all that follow.

        It is put there first: a signal handler that wakes in between finds it.
        """
        bucket.waiters[waiter] = None
        if bucket.changes is not before and waiter.waiting:
            del bucket.waiters[waiter]
            return False
        bucket.changes = object()
        return True

    def _waiting(self, key: tuple[Any, ...]) -> Iterator[FutexWaiter]:
        """Those who wait under a key, the first first. If those are enough, the others cost nothing."""
        waiters = self._bucket(key).waiters
        looked: set[FutexWaiter] = set()
        for most in (_FEW, None):
            for waiter in list(islice(chain(waiters), most)):  # a chain begins in list(): no handler comes in between
                if waiter in looked:
                    continue
                looked.add(waiter)
                if not waiter.waiting or self._bucket(waiter._key).waiters is not waiters:
                    waiters.pop(waiter, None)
                elif waiter._key == key:
                    yield waiter

    def _wake(self, key: tuple[Any, ...], n: int, bitset: int = _MASK) -> int:
        bucket = self._bucket(key)
        bucket.changes = object()
        count = 0
        for waiter in self._waiting(key) if bucket.waiters else ():
            if waiter._bitset & bitset and waiter._claim(self._due):
                bucket.waiters.pop(waiter, None)
                count += 1
                if count >= n:
                    break
        return count

    def _requeue(self, key: tuple[Any, ...], other: tuple[Any, ...], counts: tuple[int, int], before: object) -> int:
        """How many were woken or moved; -1 if the bucket has changed since ``before``, unless that is None."""
        n_wake, n_requeue = counts
        here, there = self._bucket(key), self._bucket(other)
        if before is not None and here.changes is not before:
            return -1
        here.changes = object()
        there.changes = object()
        count = 0
        for waiter in self._waiting(key):
            if count - n_wake >= n_requeue:
                break
            if count < n_wake:
                if waiter._claim(self._due):
                    here.waiters.pop(waiter, None)
                    count += 1
                continue
            there.waiters[waiter] = None
            waiter._key = other  # which moves it
            if here is not there:
                here.waiters.pop(waiter, None)
            count += 1
        return count


def _checked(bitset: int) -> int:
    """A bitset in 32 bits. Raises OSError (EINVAL) if it is empty."""
    bitset = check_int(bitset, "bitset") & _MASK
    if not bitset:
        raise error(errno.EINVAL, "an empty bitset")
    return bitset


def _compare(futex: Futex, val: int) -> None:
    """Raise OSError (EAGAIN) if the word is another; FaultError."""
    found = futex.io.load_uint32(futex.addr)
    if found != val and found != check_int(val, "val") & _MASK:
        raise error(errno.EAGAIN, f"futex at {futex.addr:#x} is {found}")


def _int32(n: int) -> int:
    return (check_int(n, "n") + (1 << 31) & _MASK) - (1 << 31)


def _sign_extended(n: int) -> int:
    """12 bits as a signed number."""
    return (n & 0xFFF ^ 0x800) - 0x800


# futex_atomic_op_inuser, and FUTEX_OP_CMP_EQ to FUTEX_OP_CMP_GE
_OPERATIONS: Final[list[Callable[[int, int], int]]] = [
    lambda old, arg: arg,
    lambda old, arg: old + arg,
    lambda old, arg: old | arg,
    lambda old, arg: old & ~arg,
    lambda old, arg: old ^ arg,
]
_COMPARISONS: Final[list[Callable[[int, int], bool]]] = [
    lambda old, arg: old == arg,
    lambda old, arg: old != arg,
    lambda old, arg: old < arg,
    lambda old, arg: old <= arg,
    lambda old, arg: old > arg,
    lambda old, arg: old >= arg,
]


def _operate(futex: Futex, op: int) -> bool:
    """Change the word as FUTEX_WAKE_OP does, and return what its comparison says of what the word was."""
    kind, comparison = op >> 28 & 7, op >> 24 & 15
    argument = _sign_extended(op >> 12)
    if op >> 31:  # FUTEX_OP_OPARG_SHIFT
        argument = 1 << (argument & 31)
    if kind >= len(_OPERATIONS):
        raise error(errno.ENOSYS, f"futex operation {kind}")
    io, addr = futex.io, futex.addr
    found, old = io.load_uint32(addr), -1
    while found != old:
        old = found
        found = io.compare_and_swap_uint32(addr, old, _OPERATIONS[kind](old, argument) & _MASK)
    if comparison >= len(_COMPARISONS):
        raise error(errno.ENOSYS, f"futex comparison {comparison}")
    return _COMPARISONS[comparison](_int32(old), _sign_extended(op))
