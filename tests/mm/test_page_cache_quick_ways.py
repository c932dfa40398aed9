"""Every quick way of a copy answers as the slow one: the same result or the same error, and the same bytes everywhere.

The slow way is ResolvedIO's own, over the same memory, which asks for every page anew.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from struct import Struct
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_layouts import BASE, FIXED, PAGE, RW, pattern, views
from hostarch import AMD64, ARM64, AccessType, AddrRange, AddrRangeSeq, Arch, mman
from safemem import Block, BlockSeq, ReaderFunc, WriterFunc, copy_seq
from usermem import AddressSpace, FaultError, ResolvedIO, copy_uint32_in
from usermem.cstruct import copy_struct_in
from usermem.strings import copy_string_in_chunks
from usermem.vec import copy_in_ranges


class SlowWay(ResolvedIO):
    """The same memory by ResolvedIO's methods alone."""

    def __init__(self, space: AddressSpace) -> None:
        self.space = space
        self.arch = space.arch

    def range_fault(self, addr: int, length: int, access: AccessType) -> FaultError | None:
        """See ResolvedIO."""
        return self.space.range_fault(addr, length, access)

    def resolve(
        self, addr: int, length: int, access: AccessType, *, ignore_permissions: bool = False
    ) -> tuple[list[Block], FaultError | None]:
        """See ResolvedIO."""
        return self.space.resolve(addr, length, access, ignore_permissions=ignore_permissions)


def sample_space(warm: bool, arch: Arch = AMD64) -> tuple[AddressSpace, list[memoryview]]:
    """Pages rw, rw, r, none, a hole, rwx, w; with zeros here and there. Warm: all of them are remembered."""
    space = AddressSpace(arch)
    space.mmap(BASE, 7 * PAGE, RW, FIXED)
    content = bytearray(pattern(7 * PAGE))
    for at in (40, 3 * PAGE - 1, 5 * PAGE + 9, 6 * PAGE):
        content[at] = 0
    space.copy_out(BASE, content)
    memory = views(space, BASE, 7 * PAGE)
    space.mprotect(BASE + 2 * PAGE, PAGE, mman.PROT_READ)
    space.mprotect(BASE + 3 * PAGE, PAGE, mman.PROT_NONE)
    space.munmap(BASE + 4 * PAGE, PAGE)
    space.mprotect(BASE + 5 * PAGE, PAGE, RW | mman.PROT_EXEC)
    space.mprotect(BASE + 6 * PAGE, PAGE, mman.PROT_WRITE)
    if warm:
        for page in (0, 1, 2, 5, 6):
            space.read_bytes(BASE + page * PAGE, 1)
            copy_uint32_in(space, BASE + page * PAGE)
            if page != 2:
                space.copy_out(BASE + page * PAGE, space.read_bytes(BASE + page * PAGE, 1))
    return space, memory


Outcome = tuple[object, ...]


def outcome(call: Callable[[], object]) -> Outcome:
    """The result, or all that an error says."""
    try:
        return "returned", call()
    except (OSError, TypeError, ValueError) as exc:
        said = [getattr(exc, name, None) for name in ("transferred", "address", "access", "reason", "partial")]
        return type(exc), str(exc), *said


BUFFERS: dict[str, Callable[[int], object]] = {
    "bytes": pattern,
    "bytearray": lambda n: bytearray(pattern(n)),
    "memoryview": lambda n: memoryview(bytearray(pattern(n))),
    "read-only memoryview": lambda n: memoryview(pattern(n)),
    "memoryview of words": lambda n: memoryview(bytearray(pattern(n // 4 * 4))).cast("I"),
    "memoryview of signed bytes": lambda n: memoryview(bytearray(pattern(n))).cast("b"),
    "two dimensions": lambda n: memoryview(bytearray(pattern(2 * (n // 2 + 1)))).cast("B", (2, n // 2 + 1)),
    "no dimension": lambda n: memoryview(bytearray(pattern(4))).cast("B", (4,)).cast("I", ()),
    "every other byte": lambda n: memoryview(bytearray(pattern(2 * n)))[::2],
    "backwards": lambda n: memoryview(bytearray(pattern(n)))[::-1],
    "array of words": lambda n: array("I", pattern(n // 4 * 4)),
    "array of bytes": lambda n: array("B", pattern(n)),
    "text": lambda n: "x" * n,
    "list of ints": lambda n: [1] * n,
    "nothing": lambda n: None,
    "number": lambda n: n,
}
addresses = st.one_of(
    st.tuples(st.integers(0, 7), st.integers(-9, 9)).map(lambda at: BASE + at[0] * PAGE + at[1]),
    st.integers(BASE - 9, BASE + 7 * PAGE + 9),
    st.sampled_from([0, -1, AMD64.max_addr - 1, AMD64.max_addr, 1 << 64, -(1 << 70), 1 << 200]),
)
sizes = st.one_of(st.integers(0, 20), st.sampled_from([2047, 2048, 2049, PAGE, PAGE + 1, 3 * PAGE]))
option = st.sampled_from([False, False, True])


def raw_bytes(buffer: object) -> bytes:
    """The bytes of a buffer, none if it is none."""
    try:
        return memoryview(buffer).tobytes()  # type: ignore[arg-type]
    except TypeError:
        return b""


@given(addresses, sizes, st.sampled_from(sorted(BUFFERS)), option, st.booleans(), st.booleans())
@example(BASE + PAGE - 2, 4, "bytearray", False, True, False)
def test_copies_answer_as_the_slow_way(addr: int, n: int, kind: str, ignored: bool, warm: bool, out: bool) -> None:
    """copy_in and copy_out: the same count or error, the same bytes in the buffer and in memory, for any buffer."""
    quick, quick_memory = sample_space(warm)
    slow_space, slow_memory = sample_space(warm)
    slow = SlowWay(slow_space)
    quick_buffer: object = BUFFERS[kind](n)
    slow_buffer: object = BUFFERS[kind](n)
    if out:
        quick_copy, slow_copy = quick.copy_out, slow.copy_out
    else:
        quick_copy, slow_copy = quick.copy_in, slow.copy_in  # type: ignore[assignment]
    got = outcome(lambda: quick_copy(addr, quick_buffer, ignore_permissions=ignored))  # type: ignore[arg-type]
    assert got == outcome(lambda: slow_copy(addr, slow_buffer, ignore_permissions=ignored))  # type: ignore[arg-type]
    assert raw_bytes(quick_buffer) == raw_bytes(slow_buffer)
    assert quick_memory == slow_memory


@given(addresses, st.one_of(sizes, st.sampled_from([-1, 1 << 70])), option, st.booleans())
@example(BASE + 40, 9, False, True)
@example(BASE + 39, 9, False, True)
@example(BASE + 3 * PAGE - 9, 20, False, True)
@example(BASE + 6 * PAGE + 1, 2 * PAGE, False, True)
def test_reads_answer_as_the_slow_way(addr: int, n: int, ignored: bool, warm: bool) -> None:
    """read_bytes, copy_string_in, copy_uint32_in and copy_struct_in: the same value or the same error."""
    quick, _ = sample_space(warm)
    slow = SlowWay(sample_space(warm)[0])
    assert outcome(lambda: quick.read_bytes(addr, n, ignore_permissions=ignored)) == outcome(
        lambda: slow.read_bytes(addr, n, ignore_permissions=ignored)
    )
    assert outcome(lambda: quick.copy_string_in(addr, n, ignore_permissions=ignored)) == outcome(
        lambda: copy_string_in_chunks(slow, addr, n, ignore_permissions=ignored)
    )
    assert outcome(lambda: quick.copy_uint32_in(addr, ignore_permissions=ignored)) == outcome(
        lambda: copy_struct_in(slow, addr, Struct("<I"), ignore_permissions=ignored)[0]
    )
    layout = Struct(f"<{min(max(n, 0), 2 * PAGE)}s")
    assert outcome(lambda: quick.copy_struct_in(addr, layout, ignore_permissions=ignored)) == outcome(
        lambda: slow.copy_struct_in(addr, layout, ignore_permissions=ignored)
    )


@given(
    st.lists(st.tuples(addresses, sizes), max_size=6),
    st.integers(-3, 3),
    st.sampled_from(["bytearray", "memoryview", "bytes", "text"]),
    option,
    st.booleans(),
)
@example([(BASE + 5 * PAGE, 4), (BASE + 3 * PAGE, 4)], 0, "bytearray", False, True)
@example([(BASE + 5 * PAGE, 4), (BASE + 4 * PAGE, 4)], 0, "bytearray", False, True)
@example(
    [(BASE + PAGE, 4), (BASE + 2 * PAGE - 4, 4), (BASE + PAGE - 2, 9), (BASE, 2 * PAGE)], 0, "bytearray", False, True
)
@example([(BASE, PAGE), (BASE + 7 * PAGE, 0), (BASE, PAGE)], 0, "bytearray", False, True)
@example([(BASE + 7 * PAGE - 2, 4), (BASE, 4)], 0, "bytearray", False, True)
def test_gathers_answer_as_the_slow_way(
    ranges: list[tuple[int, int]], more: int, kind: str, ignored: bool, warm: bool
) -> None:
    """copy_in_vec: the same count or error and the same bytes, also where the buffer is not as long as the ranges."""
    quick, _ = sample_space(warm)
    slow = SlowWay(sample_space(warm)[0])
    ars = AddrRangeSeq([AddrRange(addr, addr + n) for addr, n in ranges])
    size = max(ars.num_bytes + more, 0)
    quick_buffer: object = BUFFERS[kind](size)
    slow_buffer: object = BUFFERS[kind](size)
    got = outcome(lambda: quick.copy_in_vec(ars, quick_buffer, ignore_permissions=ignored))  # type: ignore[arg-type]
    assert got == outcome(lambda: copy_in_ranges(slow, ars, slow_buffer, ignore_permissions=ignored))  # type: ignore[arg-type]
    assert raw_bytes(quick_buffer) == raw_bytes(slow_buffer)


TAG = 0x5A << 56


@given(
    st.lists(st.tuples(st.one_of(addresses, addresses.map(lambda addr: addr + TAG)), sizes), max_size=6),
    option,
    st.booleans(),
    st.booleans(),
    st.sampled_from([AMD64, ARM64]),
    st.tuples(st.integers(0, 30), st.integers(0, 3 * PAGE)),
    st.booleans(),
)
@example([(BASE, 4), (BASE + TAG + 8, 4), (BASE + 20, 4)], False, True, True, ARM64, (0, PAGE), False)
@example([(BASE + 2 * PAGE, 4), (BASE + 2 * PAGE - 4, 8)], False, True, True, AMD64, (0, PAGE), False)
@example([(BASE + 2 * PAGE - 4, 4), (BASE + 2 * PAGE, 0), (BASE, 9)], False, True, True, AMD64, (0, PAGE), False)
@example([(BASE + 2 * PAGE - 4, 4), (BASE + 2 * PAGE, 1)], False, True, True, AMD64, (0, PAGE), False)
@example([(BASE + 2 * PAGE, 4), (BASE + 2 * PAGE + 9, 4)], False, True, False, AMD64, (0, PAGE), False)
@example([(BASE + PAGE + 9, 4), (BASE + PAGE, 4), (BASE, 4)], False, True, True, AMD64, (0, PAGE), False)
@example([(BASE + 3 * PAGE, 4), (BASE, 4)], True, True, True, AMD64, (0, PAGE), False)
@example([(BASE, 4), (AMD64.max_addr, 0), (AMD64.max_addr, 1)], False, True, True, AMD64, (0, PAGE), False)
@example([(BASE, 4)], False, True, True, AMD64, (0, PAGE), True)
def test_streams_answer_as_the_slow_way(
    ranges: list[tuple[int, int]],
    ignored: bool,
    warm: bool,
    out: bool,
    arch: Arch,
    window: tuple[int, int],
    closed: bool,
) -> None:
    """copy_out_from and copy_in_to: the same bytes moved, or the same error; the stream sees as many bytes."""
    flat = [x for addr, n in ranges for x in (addr, n)]
    ars = AddrRangeSeq.from_pairs(flat).drop_first(window[0]).take_first(window[1])
    found: list[Outcome] = []
    for quick in (True, False):
        space, memory = sample_space(warm, arch)
        io: ResolvedIO = space if quick else SlowWay(space)
        asked: list[bytes | int] = []

        def read(dsts: BlockSeq, asked: list[bytes | int] = asked) -> int:
            asked.append(dsts.num_bytes)
            return copy_seq(dsts, BlockSeq.of(Block(pattern(dsts.num_bytes)[::-1])))

        def write(srcs: BlockSeq, asked: list[bytes | int] = asked) -> int:
            asked.append(srcs.tobytes())
            return srcs.num_bytes

        if closed:
            space.close()
        if out:
            got = outcome(lambda: io.copy_out_from(ars, ReaderFunc(read), ignore_permissions=ignored))  # noqa: B023
        else:
            got = outcome(lambda: io.copy_in_to(ars, WriterFunc(write), ignore_permissions=ignored))  # noqa: B023
        found.append((got, asked, [bytes(view) for view in memory]))
    assert found[0] == found[1]


def test_a_run_is_not_followed_back() -> None:
    """A page below that of the range before has rights of its own, though both are one piece of host memory."""
    space = AddressSpace()
    space.mmap(BASE, 2 * PAGE, RW, FIXED)
    space.copy_out(BASE, pattern(2 * PAGE))
    space.mprotect(BASE, PAGE, mman.PROT_READ)
    space.copy_out(BASE + PAGE, b"remembered")
    before = space.read_bytes(BASE, 2 * PAGE)
    ars = AddrRangeSeq.from_pairs([BASE + PAGE, 4, BASE, 4])
    with pytest.raises(FaultError) as caught:
        space.copy_out_from(ars, ReaderFunc(lambda dsts: copy_seq(dsts, BlockSeq.of(Block(bytes(8))))))
    assert (caught.value.address, caught.value.transferred) == (BASE, 4)
    assert space.read_bytes(BASE, 2 * PAGE) == before[:PAGE] + bytes(4) + before[PAGE + 4 :]


def test_ranges_of_remembered_pages_are_not_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the cache does not know is looked up by resolve."""
    space, _ = sample_space(True)
    resolved: list[int] = []
    right = space.resolve

    def counted(addr: int, *args: Any, **options: Any) -> Any:
        resolved.append(addr)
        return right(addr, *args, **options)

    monkeypatch.setattr(space, "resolve", counted)
    known = AddrRangeSeq.from_pairs([BASE, 4, BASE + PAGE, 9, BASE + PAGE - 4, 8, BASE + 5 * PAGE, 0])
    assert space.copy_out_from(known, ReaderFunc(lambda dsts: dsts.num_bytes)) == 21
    assert space.copy_in_to(known, WriterFunc(lambda srcs: srcs.num_bytes)) == 21
    assert resolved == []


def test_the_sample_is_as_it_says() -> None:
    """The sample space has all the rights that a quick way must tell apart, whether it was accessed or not."""
    for warm in (False, True):
        space, memory = sample_space(warm)
        shown = [line.split()[1] for line in space.maps().splitlines()]
        assert shown == ["rw-p", "r--p", "---p", "rwxp", "-w-p"]
        assert sum(map(len, memory)) == 7 * PAGE
        known = [sum(limit >= 0 for _, _, limit, _ in pages.values()) for pages in (space._readable, space._writable)]
        assert (*known, len(space._cache.words)) == ((5, 4, 5) if warm else (0, 0, 0))


class _Index:
    """An int of somebody else's, as NumPy's are."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __index__(self) -> int:
        return self._value

    def __rshift__(self, n: int) -> int:
        return self._value >> n


def test_words_take_any_int() -> None:
    """Values of a page that is cached as those of one that is not: what is no int by type is one by __index__."""
    space = AddressSpace()
    addr = space.mmap(0, 4096, mman.PROT_READ | mman.PROT_WRITE, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
    for _ in range(2):
        assert space.swap_uint32(addr, cast(int, _Index(5))) in (0, 7)
        assert space.compare_and_swap_uint32(addr, cast(int, _Index(5)), cast(int, _Index(7))) == 5
        assert space.load_uint32(addr) == 7
        space.copy_out(addr, b"\x07\0\0\0")
        with pytest.raises(ValueError, match="new"):
            space.swap_uint32(addr, 1 << 32)
        with pytest.raises(ValueError, match="new"):
            space.swap_uint64(addr, -1)
