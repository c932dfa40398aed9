"""FutexTable beside the kernel: threads that really block, cancelled waits, maps that change, and interrupts."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable

import pytest

from each_line import Event, interrupt
from hostarch import AMD64, MIPS, mman
from simulator_file import SimulatorFile
from usermem import (
    AddressSpace,
    BytesIO,
    FaultError,
    Futex,
    FutexTable,
    FutexWaiter,
    SharedMemory,
    futex,
    linux_result,
)
from watched_io import WatchedIO

PAGE = 4096
RW, PRIVATE, ANON = mman.PROT_READ | mman.PROT_WRITE, mman.MAP_PRIVATE, mman.MAP_ANONYMOUS
BASE = 0x10000


def new_space() -> AddressSpace:
    """A space with two private pages at BASE."""
    space = AddressSpace()
    space.mmap(BASE, 2 * PAGE, RW, PRIVATE | ANON | mman.MAP_FIXED)
    return space


def waiting(table: FutexTable, word: Futex, woken: list[str], name: str = "a") -> FutexWaiter:
    """Someone who waits for a word that is 0."""
    return table.wait(word, 0, lambda: woken.append(name))


def test_cancelled_waits() -> None:
    """A wait ends once: by a wake or by cancel, also after a requeue; who is cancelled takes no wake from others."""
    space, table, woken = new_space(), FutexTable(), []  # type: tuple[AddressSpace, FutexTable, list[str]]
    one, two = Futex(space, BASE), Futex(space, BASE + 4)
    first, second = waiting(table, one, woken), waiting(table, one, woken, "b")
    assert first.waiting
    assert first.cancel()
    assert first.cancel()
    assert not first.waiting
    assert table.wake(one) == 1
    assert woken == ["b"]
    assert not second.cancel()
    third = waiting(table, one, woken)
    assert table.requeue(one, two, 0, 9) == 1
    assert third.cancel()
    assert table.wake(two, 9) == 0
    assert not any(bucket.waiters for bucket in table._buckets)


def test_changes_of_the_map() -> None:
    """Who waits keeps its key when the page is unmapped, moved, mapped anew or forked: as Linux's keys."""
    space, table, woken = new_space(), FutexTable(), []  # type: tuple[AddressSpace, FutexTable, list[str]]
    word = Futex(space, BASE)
    waiting(table, word, woken)
    child = space.fork()
    assert table.wake(Futex(child, BASE)) == 0
    moved = space.mremap(BASE, PAGE, PAGE, mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED, 0x4000_0000)
    assert table.wake(Futex(space, moved)) == 0
    with pytest.raises(FaultError):
        table.wake(word)
    space.mmap(BASE, PAGE, RW, PRIVATE | ANON | mman.MAP_FIXED)
    assert table.wake(word) == 1
    waiting(table, Futex(space, BASE, private=True), woken, "b")
    space.munmap(BASE, PAGE)
    assert table.wake(Futex(space, BASE, private=True)) == 1  # whose page is not looked at
    assert woken == ["a", "b"]


def test_shared_objects() -> None:
    """Several spaces that map one object meet at any address, by the offset in it; mremap changes nothing there."""
    table, woken = FutexTable(), []  # type: tuple[FutexTable, list[str]]
    for mapped in (SharedMemory(4 * PAGE), SimulatorFile(bytes(4 * PAGE))):
        with AddressSpace() as one, AddressSpace() as two:
            there = one.map_object(0, 4 * PAGE, RW, mman.MAP_SHARED, mapped)
            here = two.map_object(BASE, PAGE, RW, mman.MAP_SHARED | mman.MAP_FIXED, mapped, 2 * PAGE)
            waiting(table, Futex(one, there + 2 * PAGE + 8), woken)
            assert table.wake(Futex(two, here + 4)) == 0
            assert table.wake(Futex(two, here + 8, private=True)) == 0
            here = two.mremap(here, PAGE, PAGE, mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED, 0x4000_0000)
            with two.fork() as child:
                assert table.wake(Futex(child, here + 8)) == 1
            read_only = two.map_object(0, PAGE, mman.PROT_READ, mman.MAP_PRIVATE, mapped, 2 * PAGE)
            waiting(table, Futex(two, read_only + 8), woken)
            assert table.wake(Futex(one, there + 2 * PAGE + 8)) == 1
    assert len(woken) == 4


def test_other_memories_and_byte_orders() -> None:
    """An IO without a key of its own is one memory; words are in the guest's order; a wrapper sees the load."""
    table, woken = FutexTable(), []  # type: tuple[FutexTable, list[str]]
    memory = BytesIO(bytearray(b"\0\0\0\7"), MIPS)
    with pytest.raises(BlockingIOError):
        table.wait(Futex(memory, 0), 7 << 24, lambda: None)
    table.wait(Futex(memory, 0), 7, lambda: woken.append("a"))
    table.wait(Futex(memory, 0), 7 + (1 << 32), lambda: woken.append("b"))
    assert table.wake(Futex(BytesIO(bytearray(4), MIPS), 0), 9) == 0
    assert table.wake(Futex(memory, 0), 9) == 2
    assert woken == ["a", "b"]
    assert table.wake_op(Futex(memory, 0), Futex(memory, 0), 1, 1, 1 << 28 | 2 << 12) == 0
    assert memory.load_uint32(0) == 9
    watched = WatchedIO(new_space())
    waiting(table, Futex(watched, BASE, private=True), woken)
    assert [access[0] for access in watched.accesses] == ["load_uint32"]


@pytest.mark.parametrize("addr", [-4, -1, 1 << 64, 1 << 70, AMD64.max_addr, 2])
def test_any_int_is_an_address(addr: int) -> None:
    """The worst is EFAULT, or EINVAL if it is not aligned."""
    with new_space() as space:
        for private in (False, True):
            for call in (FutexTable().wake, lambda word: FutexTable().wait(word, 0, lambda: None)):
                with pytest.raises(OSError) as caught:
                    call(Futex(space, addr, private=private))
                assert -linux_result(caught.value) == (errno.EINVAL if addr & 3 else errno.EFAULT)


def test_functions_that_raise() -> None:
    """All who are woken are told, and an error comes out; a function may use the table."""
    space, table, woken = new_space(), FutexTable(), []  # type: tuple[AddressSpace, FutexTable, list[str]]
    word, other = Futex(space, BASE), Futex(space, BASE + 4)

    def fail() -> None:
        raise RuntimeError("the simulator's")

    waiting(table, word, woken)
    table.wait(word, 0, fail)
    waiting(table, word, woken, "c")
    waiting(table, other, woken, "d")
    table.wait(word, 0, lambda: table.wake(other))
    with pytest.raises(RuntimeError, match="simulator's"):
        table.wake(word, 9)
    assert woken == ["a", "c", "d"]
    assert not table._due


class Changing(BytesIO):
    """Something happens when a word is read, once."""

    def __init__(self, then: Callable[[], object]) -> None:
        super().__init__(bytearray(8))
        self.then = then

    def load_uint32(self, addr: int, *, ignore_permissions: bool = False) -> int:
        """See IO.load_uint32."""
        found = super().load_uint32(addr, ignore_permissions=ignore_permissions)
        then, self.then = self.then, bool
        then()
        return found


def test_no_wake_is_lost_after_the_word_was_read() -> None:
    """A word that changes, with a wake, between the look and the wait, is looked at again."""
    table = FutexTable()
    memory = Changing(bool)

    def change() -> None:
        memory.copy_out(0, b"\1")
        assert table.wake(Futex(memory, 0, private=True)) == 0

    memory.then = change
    with pytest.raises(BlockingIOError):
        table.wait(Futex(memory, 0, private=True), 0, lambda: None)
    memory.copy_out(0, b"\0")
    came: list[FutexWaiter] = []
    memory.then = lambda: came.append(table.wait(Futex(memory, 0, private=True), 0, lambda: None))
    assert table.requeue(Futex(memory, 0, private=True), Futex(memory, 4, private=True), 0, 9, val=0) == 1
    assert table.wake(Futex(memory, 4, private=True)) == 1
    memory.then = lambda: (memory.copy_out(0, b"\1"), table.wake(Futex(memory, 0, private=True)))
    with pytest.raises(BlockingIOError):
        table.requeue(Futex(memory, 0, private=True), Futex(memory, 4, private=True), 0, 9, val=0)


def test_many_who_wait() -> None:
    """To wake the first, or to let it wait elsewhere, costs the same however many wait behind; none is passed over."""
    space, table = new_space(), FutexTable()
    word, other = Futex(space, BASE), Futex(space, BASE + 4)
    woken: list[int] = []

    def seconds(count: int) -> float:
        """The least of three for 500 calls while so many wait."""
        times = []
        for _ in range(3):
            for i in range(count):
                table.wait(word, 0, lambda i=i: woken.append(i))  # type: ignore[misc]
            start = time.perf_counter()
            for _ in range(250):
                assert (table.wake(word), table.requeue(word, other, 0, 1)) == (1, 1)
            times.append(time.perf_counter() - start)
            assert (table.wake(word, count), table.wake(other, count)) == (count - 500, 250)
            assert woken == [*range(0, 500, 2), *range(500, count), *range(1, 500, 2)]
            woken.clear()
        return min(times)

    assert seconds(20_000) < 3 * seconds(1000)


def test_a_mutex_of_threads() -> None:
    """Threads that block by the table, over futex words in a space, count without losing one."""
    space, table = new_space(), FutexTable()
    lock, counter = Futex(space, BASE, private=True), BASE + 8

    def acquire() -> None:
        if not space.compare_and_swap_uint32(lock.addr, 0, 1):
            return
        while space.swap_uint32(lock.addr, 2):
            here = threading.Event()
            try:
                waiter = table.wait(lock, 2, here.set)
            except BlockingIOError:
                continue
            assert here.wait(20), f"a wake was lost, {waiter.waiting}"

    def run() -> None:
        for _ in range(100):
            acquire()
            value = space.load_uint32(counter)
            time.sleep(0)
            space.copy_out(counter, (value + 1).to_bytes(4, "little"))
            if space.swap_uint32(lock.addr, 0) == 2:
                table.wake(lock)

    threads = [threading.Thread(target=run) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert space.load_uint32(counter) == 500


Call = Callable[[FutexTable, Futex, Futex], object]
CALLS: dict[str, Call] = {
    "wake": lambda table, word, other: table.wake(word, 2),
    "requeue": lambda table, word, other: table.requeue(word, other, 1, 1),
    "cmp_requeue": lambda table, word, other: table.requeue(word, other, 1, 9, val=0),
    "wake_op": lambda table, word, other: table.wake_op(word, other, 1, 1, 0),
}


@pytest.mark.parametrize("act", ["raises", "wakes", "waits"])
@pytest.mark.parametrize("name", CALLS)
def test_signal_handlers(name: str, act: str) -> None:
    """Wherever a handler comes, who is woken is told once, and who is not goes on waiting and can be woken."""
    space = new_space()
    word, other = Futex(space, BASE), Futex(space, BASE + 4)
    at = 0
    while True:
        at += 1
        table, woken = FutexTable(), []  # type: tuple[FutexTable, list[str]]
        waiters = {each: waiting(table, word, woken, each) for each in "abc"}
        waiters["o"] = waiting(table, other, woken, "o")
        acts: dict[str, Callable[[], object]] = {
            "raises": interrupt,
            "wakes": lambda table=table: table.wake(word),  # type: ignore[misc]
            "waits": lambda table=table, woken=woken: waiting(table, word, woken, "late"),  # type: ignore[misc]
        }
        event = Event([futex], at, acts[act], between=True)
        try:
            event.during(lambda table=table: CALLS[name](table, word, other))  # type: ignore[misc]
        except KeyboardInterrupt:
            assert act == "raises"
        if not event.where:
            break
        table.wake(Futex(space, BASE + 8))  # any call
        still = {each for each in waiters if waiters[each].waiting}
        assert sorted(set(woken) - {"late"} | still) == sorted(waiters), event.where
        assert len(woken) == len(set(woken)), event.where
        assert not still & set(woken), event.where
        table.wake(word, 99)
        table.wake(other, 99)
        assert set(waiters) <= set(woken), event.where
        assert ("late" in woken) == (act == "waits")
        assert not any(bucket.waiters for bucket in table._buckets), event.where
    assert at > 10
    space.close()


@pytest.mark.parametrize("act", ["raises", "wakes"])
def test_signal_handlers_in_a_wait(act: str) -> None:
    """Who is interrupted does not wait, and takes no wake; a handler's wake is not lost."""
    space = new_space()
    word = Futex(space, BASE)
    at = 0
    while True:
        at += 1
        table, woken = FutexTable(), []  # type: tuple[FutexTable, list[str]]
        counts: list[int] = []
        act_now: Callable[[], object] = interrupt
        if act == "wakes":
            space.copy_out(BASE, bytes(4))

            def act_now(table: FutexTable = table, counts: list[int] = counts) -> object:
                space.copy_out(BASE, b"\1")
                counts.append(table.wake(word))
                return None

        event = Event([futex], at, act_now, between=True)
        waited = False
        try:
            event.during(lambda table=table, woken=woken: waiting(table, word, woken))  # type: ignore[misc]
            waited = True
        except (KeyboardInterrupt, BlockingIOError):
            pass
        if not event.where:
            break
        if act == "raises":
            assert not waited
            assert table.wake(word) == 0, event.where
        else:
            assert counts == [len(woken)], event.where
            assert waited == bool(woken), event.where
        assert not any(bucket.waiters for bucket in table._buckets), event.where
    assert at > 10
    space.close()
