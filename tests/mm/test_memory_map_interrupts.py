"""Something happens in the middle of a mapping call, before each line in turn: Ctrl-C, or a handler that goes on.

Ctrl-C comes at each instruction, too, at which CPython lets a handler run.

After an interrupt everything is as before the call, or as after it. After a handler its changes and those of the call
are there, as if one had come after the other.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from campaign import times
from each_line import Event, interrupt
from edge_layouts import FIXED, PAGE, RW, pattern
from hostarch import mman
from safemem import fork
from simulator_file import SimulatorFile
from small_arena import check_free
from usermem import AddressSpace, FaultError, copy_uint32_in
from usermem.mm import arena, change, free_list, host_run, memory_file, memory_map, page_cache, pma, segment, vma
from usermem.mm.backing.object_pages import write_back_released

MODULES = [arena, change, free_list, host_run, memory_map, page_cache, pma, segment, vma]
R = mman.PROT_READ
BASE = 0x4000_0000
FRESH = BASE + 8 * PAGE  # the last page of the first mapping, which nobody has touched
STACK = BASE + 0x100_0000
HEAP = BASE + 0x200_0000
OBJECT = BASE + 0x300_0000
TO = BASE + 0x400_0000
ELSEWHERE = BASE + 0x500_0000
SHARED = mman.MAP_SHARED | mman.MAP_ANONYMOUS | mman.MAP_FIXED
MOVE = mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED


PATTERN = pattern(8 * PAGE)
OFTEN = 1  # of a line that a call runs several times, the first two


def sample() -> tuple[AddressSpace, SimulatorFile]:
    """Mappings of every kind that are in use: placed, cached for reading, writing and words, and written."""
    space, file = AddressSpace(), SimulatorFile(b"o" * 2 * PAGE)
    space.mmap(BASE, 9 * PAGE, RW, FIXED)
    space.copy_out(BASE, PATTERN)
    space.mmap(STACK, PAGE, RW, FIXED | mman.MAP_GROWSDOWN)
    space.set_brk(HEAP)
    space.brk(HEAP + 3 * PAGE)
    space.map_object(OBJECT, 2 * PAGE, RW, mman.MAP_SHARED | mman.MAP_FIXED, file)
    for addr in (HEAP, HEAP + 2 * PAGE, STACK, OBJECT, OBJECT + PAGE):
        space.copy_out(addr, b"written")
    use(space, range(BASE, FRESH, PAGE))
    use(space, (HEAP, STACK, OBJECT))
    return space, file


CALLS: dict[str, Callable[[AddressSpace], object]] = {
    "mmap over something": lambda space: space.mmap(BASE + 2 * PAGE, 3 * PAGE, R, FIXED),
    "mmap beside it": lambda space: space.mmap(BASE + 9 * PAGE, PAGE, RW, FIXED),
    "mmap, shared": lambda space: space.mmap(BASE + 2 * PAGE, PAGE, RW, SHARED),
    "munmap in the middle": lambda space: space.munmap(BASE + 3 * PAGE, 2 * PAGE),
    "munmap of an object": lambda space: space.munmap(OBJECT, PAGE),
    "mprotect in the middle": lambda space: space.mprotect(BASE + 3 * PAGE, 2 * PAGE, R),
    "mremap with a move": lambda space: space.mremap(BASE + 2 * PAGE, 2 * PAGE, 4 * PAGE, MOVE, TO),
    "brk, up": lambda space: space.brk(HEAP + 5 * PAGE),
    "brk, down": lambda space: space.brk(HEAP + PAGE),
    "madvise": lambda space: space.madvise(BASE + 3 * PAGE, 2 * PAGE, mman.MADV_DONTNEED),
    "first touch": lambda space: space.copy_out(FRESH, b"touched"),
    "an access": lambda space: space.copy_out(HEAP + PAGE, b"touched"),
    "a stack grows": lambda space: space.read_bytes(STACK - PAGE, 1),
    "close": lambda space: space.close(),
}
EVERYWHERE = (
    *range(BASE, BASE + 10 * PAGE, PAGE),
    *range(STACK - PAGE, STACK + PAGE, PAGE),
    *range(HEAP, HEAP + 5 * PAGE, PAGE),
    *(OBJECT, OBJECT + PAGE),
    *range(TO, TO + 4 * PAGE, PAGE),
)
Answers = list[object]


def use(space: AddressSpace, addresses: range | tuple[int, ...]) -> Answers:
    """Whether pages can be read and written, by short ways, and what they hold. Nothing grows by it."""
    answers: Answers = []
    for addr in addresses:
        if space._map.tables.vmas.find(addr) is None:
            assert addr >> 12 not in space._readable or space._readable[addr >> 12][0] is None
            continue
        found: object = None
        with suppress(FaultError):
            found = copy_uint32_in(space, addr), space.read_bytes(addr, 16)
            found = found, space.copy_out(addr, space.read_bytes(addr, 16))
        answers.append((addr, found))
    return answers


def state(space: AddressSpace) -> Answers:
    """All that a guest can see, but for inode numbers, of which no two are the same."""
    space._check()
    rows = [(vma.start, vma.end, vma.prot, vma.shared, vma.offset, vma.guard, vma.label) for vma in space.mappings()]
    return [rows, use(space, EVERYWHERE)]


def outcome(*calls: Callable[[AddressSpace], object]) -> Answers:
    """What a guest sees when some calls were made, one after the other."""
    space, _ = sample()
    for call in calls:
        with suppress(ValueError, OSError):  # of a closed space, of what is forbidden
            call(space)
    return state(space)


@pytest.fixture(autouse=True)
def determined(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No collector that runs destructors anywhere; an interrupt in a destructor goes nowhere, as Python has it."""
    monkeypatch.setattr(sys, "unraisablehook", bool)
    monkeypatch.setattr(memory_file, "_current", None)  # a memory file of the test's own
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="module")
def other_thread() -> Iterator[ThreadPoolExecutor]:
    """Another thread."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


def map_elsewhere(space: AddressSpace) -> None:
    """Map a page, write it, read it, map one that is shared, and use all that is mapped."""
    space.mmap(ELSEWHERE, PAGE, RW, FIXED)
    space.mmap(ELSEWHERE + 2 * PAGE, PAGE, RW, SHARED)
    assert space.copy_out(ELSEWHERE, b"elsewhere") == 9
    assert space.read_bytes(ELSEWHERE, 10) == b"elsewhere\0"
    use(space, EVERYWHERE)


def use_everything(space: AddressSpace) -> None:
    """Use all that is mapped, and change nothing: what is remembered now must not outlive the call."""
    use(space, EVERYWHERE)


def forbid(space: AddressSpace) -> None:
    """Take all rights from pages that the calls are about, or are beside what they are about."""
    for addr in (BASE + 2 * PAGE, BASE + 4 * PAGE, FRESH, HEAP + PAGE):
        with suppress(OSError):
            space.mprotect(addr, PAGE, mman.PROT_NONE)


@pytest.mark.parametrize("between", [False, True], ids=["lines", "instructions"])
@pytest.mark.parametrize("name", CALLS)
def test_an_interrupt_at_each_place(name: str, between: bool, other_thread: ThreadPoolExecutor) -> None:
    """All is as before or as after; no lock is held; the call can be made again; nothing that was written is lost.

    By day at every second place, the odd ones or the even ones in turn.
    """
    call = CALLS[name]
    before, after = outcome(), outcome(call)
    step, fired = times(2, 1), True
    at = -((list(CALLS).index(name) + between) % step)
    while fired:
        at += step
        space, file = sample()
        event = Event(MODULES, at, interrupt, OFTEN, between)
        with suppress(KeyboardInterrupt):
            event.during(lambda space=space: call(space))  # type: ignore[misc]
        fired = bool(event.where)
        assert not any(lock._is_owned() for lock in fork._locks), event.where  # type: ignore[attr-defined]
        found = state(space)
        assert found in (before, after), event.where
        if found == before:
            call(space)
            assert state(space) == after, event.where
        with suppress(ValueError):
            assert not space._map.tables.closed or space.mmap(ELSEWHERE, PAGE, RW, FIXED)
            other_thread.submit(map_elsewhere, space).result(30)
            space.munmap(ELSEWHERE, 3 * PAGE)
            assert state(space) == after, event.where
        space.close()
        check_free(space._map.anonymous.arena)
        del space
        write_back_released()
        assert file.data[PAGE : PAGE + 8] == file.data[:8] == b"writteno", event.where
    assert at > 20


SAME = ["munmap in the middle", "mprotect in the middle", "mremap with a move", "madvise", "first touch", "an access"]
HANDLERS: list[tuple[str, Callable[[AddressSpace], None]]] = [
    *[(name, map_elsewhere) for name in CALLS],
    *[(name, act) for act in (use_everything, forbid) for name in SAME],
]


@pytest.mark.parametrize(("name", "act"), HANDLERS)
def test_a_handler_before_each_line(name: str, act: Callable[[AddressSpace], None]) -> None:
    """What it changes and what the call changes are both there: one of them came first.

    By day every second line, the odd ones or the even ones in turn.
    """
    call = CALLS[name]
    expected = [outcome(act, call), outcome(call, act)]
    step, fired = times(2, 1), True
    at = -(HANDLERS.index((name, act)) % step)

    def handle() -> None:
        with suppress(ValueError):  # of a space that is closed by now
            act(space)

    while fired:
        at += step
        space, _ = sample()
        event = Event(MODULES, at, handle, OFTEN)
        with suppress(OSError):  # of a call that came after
            event.during(lambda space=space: call(space))  # type: ignore[misc]
        fired = bool(event.where)
        if fired:
            assert state(space) in expected, event.where
            if act is map_elsewhere and not space._map.tables.closed:
                assert space.read_bytes(ELSEWHERE, 10) == b"elsewhere\0", event.where
    assert at > 20
