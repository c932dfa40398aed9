"""The tiers of atomics: which is used, what it promises to whom, and the operations that came with them."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomics_tier import forced
from each_line import Event, interrupt
from hostarch import AMD64, S390X, Arch, ByteOrder
from safemem import Block, atomics, native_atomics
from switching import run_beside
from usermem import BytesIO, FaultError

SIZES = [1, 2, 4, 8]
OPERATIONS = ["load", "swap", "compare_and_swap", "fetch_add"]
TURNS = 300_000


def operation(name: str, size: int) -> Any:
    """The function of this name for words of this size."""
    return partial(getattr(atomics, name), size)


@pytest.fixture(scope="module", params=["native", "lock"])
def tier(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each tier."""
    with forced(request.param):
        yield request.param


@given(data=st.data(), size=st.sampled_from(SIZES), order=st.sampled_from(["little", "big"]), shift=st.integers(0, 8))
def test_a_word_is_a_variable(tier: str, data: st.DataObject, size: int, order: ByteOrder, shift: int) -> None:
    """Whatever is done to it, at any address and in either order, and no byte beside it changes."""
    most = (1 << 8 * size) - 1
    values = st.integers(0, most)
    buffer = bytearray(b"\xee" * 32)
    block = Block(buffer).drop_first(shift)
    word = int.from_bytes(b"\xee" * size, order)
    options: dict[str, Any] = {"byte_order": order, "aligned": shift % size == 0}
    for name in data.draw(st.lists(st.sampled_from(OPERATIONS), max_size=8)):
        act = operation(name, size)
        if name == "load":
            assert act(block, **options) == word
        elif name == "swap":
            value = data.draw(values)
            assert act(block, value, **options) == word
            word = value
        elif name == "compare_and_swap":
            old, new = data.draw(st.one_of(values, st.just(word))), data.draw(values)
            assert act(block, old, new, **options) == word
            word = new if old == word else word
        else:
            value = data.draw(st.integers(-most - 1, most))
            assert act(block, value, **options) == word
            word = word + value & most
        assert buffer == b"\xee" * shift + word.to_bytes(size, order) + b"\xee" * (32 - shift - size)


@pytest.mark.parametrize("size", SIZES)
def test_additions_out_of_bounds(tier: str, size: int) -> None:
    """What no word of this size can mean is refused."""
    buffer = bytearray(8)
    for value in (1 << 8 * size, -(1 << 8 * size) - 1):
        with pytest.raises(ValueError, match="value"):
            operation("fetch_add", size)(Block(buffer), value)
    assert buffer == bytes(8)


ADD = """
import mmap, sys
from safemem import Block, atomics
memory = mmap.mmap(int(sys.argv[1]), 4096)
words = Block(memory)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    atomics.fetch_add(4, words, 1)
    value = atomics.load_uint64(words.drop_first(8))
"""


def add_from_two_processes(tier: str, turns: int) -> int:
    """Have two processes add 1 to a word that they share, ``turns`` times each; what it is then."""
    fd = os.memfd_create("word")
    try:
        os.truncate(fd, 4096)
        memory = mmap.mmap(fd, 4096)
        others = [
            subprocess.Popen(
                [sys.executable, "-c", ADD, str(fd), str(turns)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=[fd],
                env=os.environ | {atomics.FORCED: tier},
            )
            for _ in range(2)
        ]
        for other in others:
            assert other.stdout is not None
            assert other.stdout.readline() == "ready\n"
        for other in others:
            assert other.stdin is not None
            other.stdin.write("go\n")
            other.stdin.flush()
        for other in others:
            other.communicate(timeout=120)
            assert other.returncode == 0
        return int.from_bytes(memory[:4], sys.byteorder)
    finally:
        os.close(fd)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs memory that processes share by descriptor")
def test_two_processes_lose_no_increment() -> None:
    """Under native atomics."""
    with forced("native"):
        pass
    assert add_from_two_processes("native", TURNS) == 2 * TURNS


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs memory that processes share by descriptor")
def test_what_the_lock_does_not_promise() -> None:
    """It holds in one process: two may lose increments, and all that is sure is that none is invented."""
    turns = 20_000
    assert turns <= add_from_two_processes("lock", turns) <= 2 * turns


def test_what_the_lock_promises() -> None:
    """Threads of one process lose none."""
    with forced("lock"):
        block = Block(bytearray(8))
        threads = [
            threading.Thread(target=lambda: [atomics.fetch_add(8, block, 1) for _ in range(2000)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert atomics.load_uint64(block) == 8000


def in_a_process(**environment: str) -> str:
    """What a process with these variables says its tier is."""
    done = subprocess.run(
        [sys.executable, "-c", "from safemem import atomics; print(atomics.tier(), atomics.reason())"],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
        check=False,
    )
    return done.stdout or done.stderr.splitlines()[-1]


def test_a_tier_is_forced() -> None:
    """By a variable of the environment, which the reason names; another word is an error that says which are right."""
    assert in_a_process(SAFEMEM_ATOMICS="lock") == "lock SAFEMEM_ATOMICS=lock\n"
    assert "must be native or lock" in in_a_process(SAFEMEM_ATOMICS="fast")


class Lying:
    """A libatomic some function of which does not do what it should."""

    def __init__(self, name: str) -> None:
        self._right = native_atomics._load()
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name != self._name:
            return getattr(self._right, name)

        class Function:
            restype: Any = None
            argtypes: Any = None

            def __call__(self, *args: object) -> int:
                return 0

        return Function()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["load", "exchange", "fetch_add", "compare_exchange"])
def test_a_library_that_lies(size: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found out before it is used."""
    try:
        lying = Lying(f"__atomic_{name}_{size}")
    except OSError as exc:
        pytest.skip(f"no libatomic here: {exc}")
    monkeypatch.setattr(native_atomics, "_load", lambda: lying)
    with pytest.raises(OSError, match="wrong answers"):
        native_atomics.NativeAtomics()


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is used, and doctor says what to install; forced, native is an error."""

    def nothing(name: str) -> ctypes.PyDLL:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "PyDLL", nothing)
    monkeypatch.delenv(atomics.FORCED, raising=False)
    for cached in (atomics._found, atomics.native):
        cached.cache_clear()
    try:
        assert atomics.tier() == "lock"
        assert "libatomic" in atomics.reason()
        monkeypatch.setenv(atomics.FORCED, "native")
        atomics.native.cache_clear()
        with pytest.raises(OSError, match="libatomic"):
            atomics.tier()
    finally:
        monkeypatch.undo()
        for cached in (atomics._found, atomics.native):
            cached.cache_clear()


@pytest.mark.parametrize("arch", [AMD64, S390X], ids=lambda arch: arch.name)
def test_long_words_of_user_memory(tier: str, arch: Arch) -> None:
    """In the guest's order; a word that is not there whole is a fault."""
    buffer = bytearray(range(20))
    io = BytesIO(buffer, arch)
    order = arch.byte_order
    assert io.load_uint64(8) == int.from_bytes(buffer[8:16], order)
    assert io.swap_uint64(8, 5) == int.from_bytes(bytes(range(8, 16)), order)
    assert io.compare_and_swap_uint64(8, 5, 1 << 63) == 5
    assert io.compare_and_swap_uint64(8, 5, 1) == 1 << 63
    assert buffer[8:16] == (1 << 63).to_bytes(8, order)
    with pytest.raises(FaultError):
        io.load_uint64(13)
    assert buffer[16:] == bytes(range(16, 20))


FIRST_ATOMIC = """
import sys
started = []
sys.addaudithook(lambda event, args: event in ("subprocess.Popen", "os.fork", "os.exec") and started.append(event))
from safemem import Block, atomics
atomics.swap_uint32(Block(bytearray(4)), 1)
assert not started, started
"""


def test_no_process_is_started() -> None:
    """The first operation finds the library by its name, without a compiler that would know it."""
    environ = {name: value for name, value in os.environ.items() if name != atomics.FORCED}
    command = [sys.executable, "-c", FIRST_ATOMIC]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86-64 has operations at odd addresses")
@pytest.mark.parametrize("shift", [1, 5, 6, 13])
def test_odd_words_beside_native_ones(shift: int) -> None:
    """A word at an odd address and a byte in it, each counted up by a thread: no addition is lost."""
    with forced("native"):
        buffer = bytearray(192)
        base = Block(buffer)
        line = base.drop_first(-base.address % 64)
        odd, byte = line.drop_first(shift).take_first(4), line.drop_first(shift + 3).take_first(1)

        def add(block: Block, size: atomics.Size) -> None:
            for _ in range(TURNS // 10):
                atomics.fetch_add(size, block, 1, aligned=False)

        run_beside([partial(add, odd, 4), partial(add, byte, 1)])
        turns = TURNS // 10
        assert atomics.load_uint32(odd, "little", aligned=False) == turns + (turns << 24) & 0xFFFF_FFFF


def test_a_handler_in_the_middle_of_an_operation() -> None:
    """Of the tier lock: it is refused, before each line, and does not wait for ever; after it all goes on."""
    with forced("lock"):
        at, fired, refused = 0, True, 0
        while fired:
            at += 1
            block = Block(bytearray(8))

            def handle(block: Block = block) -> None:
                nonlocal refused
                try:
                    atomics.fetch_add(4, block, 0x100)
                except RuntimeError:
                    refused += 1

            event, before = Event([atomics], at, handle), refused
            event.during(partial(atomics.fetch_add, 4, block, 1))
            fired = bool(event.where)
            assert atomics.load(4, block) == 1 + 0x100 * (fired and refused == before), event.where
        assert refused > 3


def test_an_interrupt_in_the_middle_of_an_operation() -> None:
    """The word is as before or as after, and no lock is held."""
    with forced("lock"):
        at, fired = 0, True
        while fired:
            at += 1
            block = Block(bytearray(8))
            event = Event([atomics], at, interrupt)
            with suppress(KeyboardInterrupt):
                event.during(partial(atomics.fetch_add, 4, block, 1))
            fired = bool(event.where)
            found: list[int] = []
            thread = threading.Thread(target=lambda found=found, block=block: found.append(atomics.load(4, block)))
            thread.start()
            thread.join(10)
            assert found in ([0], [1]), event.where
        assert at > 5
