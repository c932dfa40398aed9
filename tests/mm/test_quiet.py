"""quietly: what its function sees stands still, no completed write is lost, and it is said who is in the way."""

from __future__ import annotations

import _thread
import os
import pickle
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EBUSY
from functools import partial

import pytest

from campaign import times
from each_line import Event, interrupt
from edge_layouts import ANON, BASE, FIXED, PAGE, RW, GrowingObject
from hostarch import READ, READ_WRITE, WRITE, AddrRange, AddrRangeSeq, mman
from safemem import Block, BlockSeq, BlockSeqReader, FDReader, fork
from usermem import (
    AddressSpace,
    BusyError,
    copy_between,
    copy_out_vec,
    copy_struct_out,
    copy_uint64_out,
    read_fd,
)
from usermem.mm import mapped_io, memory_map, page_cache, quiet
from usermem.mm.quiet import quietly

X, Y, Z = BASE, BASE + 3 * PAGE, BASE + 8 * PAGE
ALL = 16 * PAGE
LAYOUT = struct.Struct("<QQ")


@pytest.fixture
def space() -> Iterator[AddressSpace]:
    """A space with some pages, which have been written."""
    space = AddressSpace()
    space.mmap(BASE, ALL, RW, FIXED)
    space.copy_out(BASE, bytes(ALL))
    yield space
    assert space._map.held is None
    assert not space._cache.frozen
    assert not space._map._lock._is_owned()  # type: ignore[attr-defined]
    space._check()


def ranges(*parts: tuple[int, int]) -> AddrRangeSeq:
    """Ranges of an address and a length each."""
    return AddrRangeSeq([AddrRange(at, at + n) for at, n in parts])


@contextmanager
def thread(work: Callable[[], object]) -> Iterator[threading.Thread]:
    """A thread that ends with the test; what it raises, the test raises."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as exc:
            raised.append(exc)

    worker = threading.Thread(target=run, name="worker")
    worker.start()
    try:
        yield worker
    finally:
        worker.join(20)
        assert not worker.is_alive()
        assert not raised, raised


def by_reader(space: AddressSpace, at: int, data: bytes) -> None:
    half = len(data) // 2
    where = ranges((at, half), (at + half, len(data) - half))
    space.copy_out_from(where, BlockSeqReader(BlockSeq([Block(data[:3]), Block(data[3:])])))


def by_pipe(space: AddressSpace, at: int, data: bytes) -> None:
    end, other = os.pipe()
    try:
        os.write(other, data)
        assert read_fd(space, end, at, len(data)) == len(data)
    finally:
        os.close(end)
        os.close(other)


def by_words(space: AddressSpace, at: int, data: bytes) -> None:
    space.swap_uint64(at, int.from_bytes(data[:8], "little"))
    space.swap_uint64(at + 8, int.from_bytes(data[8:], "little"))


WRITERS: dict[str, Callable[[AddressSpace, int, bytes], object]] = {
    "copy_out": lambda space, at, data: space.copy_out(at, data),
    "ignoring rights": lambda space, at, data: space.copy_out(at, data, ignore_permissions=True),
    "across stretches": lambda space, at, data: space.copy_out(at, data + bytes(2 * PAGE)),
    "copy_out_from": by_reader,
    "copy_out_vec": lambda space, at, data: copy_out_vec(space, ranges((at, 5), (at + 5, 11)), data),
    "read_fd": by_pipe,
    "atomics": by_words,
    "struct": lambda space, at, data: copy_struct_out(space, at, LAYOUT, *LAYOUT.unpack(data)),
    "uint64": lambda space, at, data: [
        copy_uint64_out(space, at + i, *struct.unpack_from("<Q", data, i)) for i in (0, 8)
    ],
    "views": lambda space, at, data: copy_between(space, ranges((at, 16)), space, ranges((staged(space, data), 16))),
    "mapping": lambda space, at, data: (space.copy_out(at, data), space.munmap(space.mmap(0, PAGE, RW, ANON), PAGE)),
}


def staged(space: AddressSpace, data: bytes) -> int:
    """Where the data are in the space, to be copied on."""
    space.copy_out(Z, data)
    return Z


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_beside(name: str, space: AddressSpace) -> None:
    """What it has published is there; Y is never ahead of X; nothing moves; what is put back loses no write.

    The function copies all pages, and puts the copy back a moment later: a write in between would be gone.
    """
    write = WRITERS[name]
    space.mprotect(Y + PAGE, PAGE, mman.PROT_READ | mman.PROT_WRITE | mman.PROT_EXEC)  # there a stretch ends
    stop = threading.Event()
    published = [0]
    seen: list[int] = []

    def work() -> None:
        while not stop.is_set():
            number = published[0] + 1
            for at in (X, Y):
                write(space, at, LAYOUT.pack(number, number))
                assert space.read_bytes(at, 16) == LAYOUT.pack(number, number), "a completed write is lost"
            published[0] = number

    def body() -> None:
        before = published[0]
        runs = space.host_runs(BASE, BASE + ALL)
        image = b"".join(run._runs[0].view().tobytes() for run in runs)
        time.sleep(0.003)
        assert b"".join(run._runs[0].view().tobytes() for run in runs) == image, "something moved"
        x, y = image[X - BASE :][:16], image[Y - BASE :][:16]
        (first, second), (third, fourth) = LAYOUT.unpack(x), LAYOUT.unpack(y)
        if name not in ("atomics", "uint64"):  # which are two writes
            assert (first, third) == (second, fourth), "torn"
        assert third <= first <= third + 1
        assert published[0] <= third
        assert published[0] <= before + 1
        seen.append(before)
        at = 0
        for run in runs:
            run._runs[0].view()[:] = image[at : at + run.length]
            at += run.length

    with thread(work) as worker:
        try:
            for _ in range(times(7, 20)):
                quietly(space._map, body, timeout=10)
                end = time.monotonic() + 10
                while published[0] <= seen[-1] + 1 and time.monotonic() < end and worker.is_alive():
                    time.sleep(0.0005)
        finally:
            stop.set()
    assert len(set(seen)) == len(seen), "the writer stood still in between"
    assert published[0] >= seen[-1]


def test_many_writers(space: AddressSpace) -> None:
    """The door stays shut for a moment, so that all come out: else it would take 2**12 looks."""
    stop = threading.Event()

    def work(number: int) -> None:
        while not stop.is_set():
            space.copy_out(X + number * 16, bytes(16))
            copy_uint64_out(space, Y, number)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for each in workers:
        each.start()
    try:
        for _ in range(times(1, 3)):
            assert quietly(space._map, lambda: "done", timeout=10) == "done"
    finally:
        stop.set()
        for each in workers:
            each.join()


@contextmanager
def blocked(work: Callable[[int], object]) -> Iterator[Callable[[], None]]:
    """A thread that waits in the kernel for a pipe, by ``work(fd)``; and what lets it go on."""
    end, other = os.pipe()

    def go_on() -> None:
        os.write(other, b"x" * 16)

    try:
        with thread(lambda: work(end)) as worker:
            try:
                while not waits_in_kernel(worker):
                    time.sleep(0.001)
                yield go_on
            finally:
                go_on()
    finally:
        os.close(end)
        os.close(other)


def waits_in_kernel(worker: threading.Thread) -> bool:
    """Whether the thread sleeps, twice in a row."""
    for _ in range(2):
        with open(f"/proc/self/task/{worker.native_id}/stat") as file:  # noqa: PTH123
            if file.read().rpartition(")")[2].split()[0] != "S":
                return False
        time.sleep(0.01)
    return True


SLOW: dict[str, Callable[[AddressSpace, int], object]] = {
    "copy_out_from": lambda space, fd: space.copy_out_from(ranges((X, 4), (Y, 4)), FDReader(fd)),
    "read_fd": lambda space, fd: read_fd(space, fd, X, 8),
}


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="the host does not tell who sleeps")  # noqa: PTH110
@pytest.mark.parametrize("name", SLOW)
def test_a_read_that_is_blocked_in_the_kernel(name: str, space: AddressSpace) -> None:
    """It is named at once, or waited for; other threads go on meanwhile; other spaces have nothing to do with it."""
    with blocked(partial(SLOW[name], space)) as go_on:
        with pytest.raises(BusyError, match=rf"'worker' is in the middle of {name} ") as caught:
            quietly(space._map, pytest.fail)
        assert (caught.value.errno, caught.value.thread in sys._current_frames()) == (EBUSY, True)
        start = time.monotonic()
        with pytest.raises(BusyError):
            quietly(space._map, pytest.fail, timeout=0.1)
        assert 0.1 <= time.monotonic() - start < 2
        assert quietly(AddressSpace()._map, lambda: 1) == 1
        with thread(lambda: quietly(space._map, lambda: seen.append(space.read_bytes(X, 4)), timeout=None)):
            seen: list[bytes] = []
            assert space.read_bytes(Z, 1) == b"\0"
            assert space.munmap(space.mmap(0, PAGE, RW, ANON), PAGE) == 0
            assert not seen
            go_on()
    assert seen == [b"xxxx"]


def test_a_copy_between_spaces_counts_for_both(space: AddressSpace) -> None:
    """The reader's own code runs in the middle of both."""
    other = AddressSpace()
    inside, on = threading.Event(), threading.Event()

    class Slow(GrowingObject):
        def read_at(self, offset: int, dst: memoryview) -> int:
            inside.set()
            on.wait(10)
            return super().read_at(offset, dst)

    at = other.map_object(0, PAGE, RW, mman.MAP_SHARED, Slow(b"both", PAGE))
    with thread(lambda: copy_between(space, ranges((X, 4)), other, ranges((at, 4)))):
        assert inside.wait(10)
        for each in (space, other):
            with pytest.raises(BusyError, match="copy_between"):
                quietly(each._map, pytest.fail)
        on.set()
    assert quietly(space._map, lambda: space.read_bytes(X, 4)) == b"both"


def test_who_waits_at_the_lock_is_in_no_access(space: AddressSpace) -> None:
    """A thread that comes while the map is quiet goes on afterwards; two that are quiet take turns, without a wait."""
    inside = [0]
    busy: list[BusyError] = []

    def body() -> None:
        inside[0] += 1
        assert inside == [1]
        time.sleep(0.001)
        inside[0] -= 1

    def work() -> None:
        for _ in range(30):
            try:
                quietly(space._map, body)
            except BusyError as exc:
                busy.append(exc)

    with thread(work), thread(work):
        pass
    assert not busy

    later = threading.Thread(target=lambda: space.copy_out(X, b"later"))

    def first() -> None:
        later.start()
        time.sleep(0.05)
        assert quiet._others(space._map) is None  # it waits, and has moved nothing
        assert space.read_bytes(X, 5) == bytes(5)

    try:
        quietly(space._map, first)
    finally:
        later.join(10)
    assert space.read_bytes(X, 5) == b"later"


def test_a_thread_that_has_only_just_been_started(space: AddressSpace) -> None:
    """It has no frame yet when the function begins, and waits all the same."""

    def stands_still() -> None:
        before = space.read_bytes(X, 3)
        time.sleep(0.002)
        assert space.read_bytes(X, 3) == before

    for _ in range(20):
        space.copy_out(X, bytes(8))
        ended = threading.Lock()
        ended.acquire()

        def work(ended: threading.Lock = ended) -> None:
            space.copy_out(X, b"new")
            ended.release()

        _thread.start_new_thread(work, ())
        try:
            with suppress(BusyError):
                quietly(space._map, stands_still)
        finally:
            ended.acquire()
            ended.release()


def test_hooks(space: AddressSpace) -> None:
    """From a hook of this very thread it is refused at once, whatever the timeout; another thread's is waited for."""
    inside, on = threading.Event(), threading.Event()

    def refused(addr: int, access: object) -> bool:
        with pytest.raises(BusyError, match="this very thread") as caught:
            quietly(space._map, pytest.fail, timeout=None)
        assert caught.value.thread == threading.get_ident()
        return False

    def slow(addr: int, access: object) -> bool:
        inside.set()
        return not on.wait(10)

    space.on_fault = refused
    with pytest.raises(OSError):
        space.read_bytes(BASE - PAGE, 1)
    space.on_change = lambda *_: refused(0, 0)
    space.munmap(space.mmap(0, PAGE, RW, ANON), PAGE)
    space.on_change = None
    space.on_fault = slow

    def fault() -> None:
        with suppress(OSError):
            space.read_bytes(BASE - PAGE, 1)

    with thread(fault):
        assert inside.wait(10)
        with pytest.raises(BusyError, match="read_bytes"):
            quietly(space._map, pytest.fail)
        on.set()
        assert quietly(space._map, lambda: 1, timeout=10) == 1


def test_a_reader_of_this_thread_is_refused(space: AddressSpace) -> None:
    """Its call is in the middle of the copy."""

    class Bad:
        def read_to_blocks(self, dsts: BlockSeq) -> int:
            quietly(space._map, pytest.fail, timeout=None)
            return 0

    with pytest.raises(BusyError, match="this very thread"):
        space.copy_out_from(ranges((X, 4)), Bad())


def test_pins(space: AddressSpace) -> None:
    """As long as something is there through which bytes can be written; what can only be read pins nothing."""
    where = ranges((X, 8), (Y, 8))
    kept: list[object] = [space.blocks(where, READ)]
    quietly(space._map, bool)
    makers: list[Callable[[BlockSeq], object]] = [
        lambda seq: seq,
        lambda seq: seq.drop_first(9),
        lambda seq: seq.head(),
        lambda seq: next(iter(seq.take_first(3))).drop_first(1),
        lambda seq: seq.views()[1],
        lambda seq: seq.head().view()[2:3],
    ]
    with suppress(ImportError):
        import numpy

        makers.append(lambda seq: numpy.frombuffer(seq.views()[0], numpy.uint8)[1:])
    for make in makers:
        for access in (WRITE, READ_WRITE):
            kept.append(make(space.blocks(where, access)))
            with pytest.raises(BusyError, match="blocks") as caught:
                quietly(space._map, pytest.fail)
            assert caught.value.thread is None
            with pytest.raises(BusyError):
                quietly(space._map, pytest.fail, timeout=0.01)
            kept.pop()
            quietly(space._map, bool)
    seq = space.blocks(where, WRITE)
    seq.views()[0][:] = b"throughs"
    assert space.read_bytes(X, 8) == b"throughs"
    del seq
    runs = space.host_runs(X, Y)
    quietly(space._map, bool)
    del runs


def test_pins_of_memory_that_may_fault(space: AddressSpace, tmp_path: object) -> None:
    """A file of the host's: its blocks have no views."""
    with open(f"{tmp_path}/file", "w+b") as file:  # noqa: PTH123
        file.truncate(PAGE)
        at = space.mmap(0, PAGE, RW, mman.MAP_SHARED, file.fileno())
    seq = space.blocks(ranges((at, 8)), WRITE)
    assert seq.need_safecopy
    with pytest.raises(BusyError):
        quietly(space._map, pytest.fail)
    del seq
    quietly(space._map, bool)


def test_changes_in_it(space: AddressSpace) -> None:
    """They are let in, the copies of this thread too; listeners are told afterwards, without the lock, in order."""
    told: list[object] = []
    at = BASE + 0x100_0000

    def listen(start: int, end: int, kind: object) -> None:
        assert not space._map._lock._is_owned()  # type: ignore[attr-defined]
        told.append((start, str(kind)))

    def body() -> int:
        space.copy_out(X, b"inside")
        assert space._writable[X >> 12][0] is None  # nothing is cached, or another thread would not wait
        space.mmap(at, PAGE, RW, FIXED)
        space.copy_out(at, b"inside")
        space.mprotect(at, PAGE, mman.PROT_READ)
        assert not told
        assert space.read_bytes(at, 6) == b"inside"
        assert at >> 12 not in space._readable
        with pytest.raises(BusyError, match="this very thread"):
            quietly(space._map, pytest.fail, timeout=None)
        return 7

    space.on_change = listen
    stop = threading.Event()
    with thread(lambda: stop.wait(10)):
        assert quietly(space._map, body) == 7
        stop.set()
    assert told == [(at, "map"), (at, "protect")]
    assert space.read_bytes(at, 6) == b"inside"


def test_what_is_unmapped_in_it_is_written_back(space: AddressSpace) -> None:
    """After it, without the lock."""
    from simulator_file import SimulatorFile

    file = SimulatorFile(bytes(PAGE))
    at = space.map_object(0, PAGE, RW, mman.MAP_SHARED, file)
    space.copy_out(at, b"back")
    quietly(space._map, lambda: space.munmap(at, PAGE))
    assert file.data[:4] == b"back"


CALLS: dict[str, Callable[[AddressSpace], object]] = {
    "copy_out": lambda space: space.copy_out(X, b"x"),
    "first touch": lambda space: space.copy_out(BASE + ALL, b"x"),
    "munmap": lambda space: space.munmap(X, PAGE),
    "word": lambda space: space.swap_uint32(X, 1),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_handler_in_the_middle_of_a_call(name: str, space: AddressSpace) -> None:
    """At each line of a copy or a change of its own thread it is refused."""
    at, fired = 0, True
    while fired:
        at += 1
        other = AddressSpace()
        other.mmap(BASE, ALL + PAGE, RW, FIXED)
        other.copy_out(BASE, bytes(ALL))
        refused: list[BusyError] = []

        def act(other: AddressSpace = other, refused: list[BusyError] = refused) -> None:
            try:
                quietly(other._map, pytest.fail)
            except BusyError as exc:
                refused.append(exc.with_traceback(None))

        event = Event([memory_map, mapped_io, page_cache], at, act)
        event.during(partial(CALLS[name], other))
        fired = bool(event.where)
        assert len(refused) == fired, event.where
        other._check()
    assert at > 3


@pytest.mark.parametrize("between", [False, True], ids=["lines", "instructions"])
def test_an_interrupt_at_each_place(between: bool, space: AddressSpace) -> None:
    """The lock is free, pages are cached again, and no byte is lost."""
    at, fired = 0, True
    ran: list[int] = []
    stop = threading.Event()

    def body() -> None:
        ran.append(at)
        space.mprotect(Z, PAGE, mman.PROT_READ if at % 2 else RW)

    with thread(lambda: stop.wait(60)):
        try:
            while fired:
                at += 1
                space.copy_out(X, at.to_bytes(8, "little"))
                event = Event([quiet, memory_map], at, interrupt, 2, between)
                with suppress(KeyboardInterrupt):
                    event.during(lambda: quietly(space._map, body, timeout=1))
                fired = bool(event.where)
                assert space._map.held is None, event.where
                assert not space._cache.frozen, event.where
                assert not any(lock._is_owned() for lock in fork._locks), event.where  # type: ignore[attr-defined]
                space._check()
                assert space.read_bytes(X, 8) == at.to_bytes(8, "little")
                assert X >> 12 in space._readable
                assert quietly(space._map, lambda: 1, timeout=5) == 1
        finally:
            stop.set()
    assert ran[-1] == at
    assert at > 20


def test_an_interrupt_while_it_waits(space: AddressSpace) -> None:
    """Nothing is held when it has gone."""
    pin = space.blocks(ranges((X, 8)), WRITE)
    at, fired = 0, True
    while fired and at < 300:
        at += 1
        event = Event([quiet], at, interrupt)
        with pytest.raises((KeyboardInterrupt, BusyError)):
            event.during(lambda: quietly(space._map, pytest.fail, timeout=0.003))
        fired = bool(event.where)
        assert space._map.held is None, event.where
        assert not any(lock._is_owned() for lock in fork._locks), event.where  # type: ignore[attr-defined]
    assert at > 20
    del pin


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this host does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("where", ["inside", "beside"])
def test_fork(where: str, space: AddressSpace) -> None:
    """A child that is forked off in the middle uses the space, and is quick again after a change."""

    def use() -> bool:
        space.copy_out(X, b"child")
        space.munmap(space.mmap(0, PAGE, RW, ANON), PAGE)
        space.copy_out(X, b"child")
        return (
            X >> 12 in space._writable
            and space._writable[X >> 12][0] is not None
            and quietly(space._map, bool) is False
        )

    def child() -> int:
        pid = os.fork()
        if not pid:
            code = 1
            try:
                code = not (True if where == "inside" else use())
            finally:
                if where == "beside":
                    os._exit(code)
        return pid

    parent = os.getpid()
    pid = 1
    if where == "inside":
        try:
            pid = quietly(space._map, child)
            code = not use() if not pid else 0
        finally:
            if os.getpid() != parent:
                os._exit(code)
    else:
        inside, on = threading.Event(), threading.Event()

        def body() -> None:
            inside.set()
            on.wait(10)

        with thread(lambda: quietly(space._map, body, timeout=5)):
            assert inside.wait(10)
            pid = child()
            on.set()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan")])
def test_a_bad_timeout(timeout: float, space: AddressSpace) -> None:
    """It is a ValueError."""
    with pytest.raises(ValueError, match="timeout"):
        quietly(space._map, pytest.fail, timeout=timeout)


def test_the_error() -> None:
    """It survives pickling, and says EBUSY."""
    error = BusyError("reason", 7)
    again = pickle.loads(pickle.dumps(error))
    assert (again.errno, again.thread, again.reason, str(again)) == (EBUSY, 7, "reason", str(error))


def test_what_the_function_raises_passes_through(space: AddressSpace) -> None:
    """And the map is open again."""
    with pytest.raises(ZeroDivisionError):
        quietly(space._map, lambda: 1 // 0)
    space.copy_out(X, b"open")
