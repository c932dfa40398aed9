"""An AddressSpace against the simplest one there is: a dict of pages, each with its rights and its bytes.

Any sequence of calls gives the same results, the same exact counts at faults, and the same contents.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edge_layouts import ANON, PAGE, RW, pieces, sink, source
from hostarch import AccessType, mman
from usermem import (
    AddressSpace,
    FaultError,
    FaultReason,
    NameTooLongError,
    copy_in_vec,
    copy_out_vec,
    copy_string_in,
    zero_out_vec,
)

BASE = 0x40_0000
PAGES = 4
runs = st.tuples(st.integers(0, PAGES - 1), st.integers(1, 3))
rights = st.sampled_from([mman.PROT_NONE, mman.PROT_READ, RW, RW, mman.PROT_WRITE, mman.PROT_EXEC])
ways = st.sampled_from(["plain", "vec", "stream"])
# Mostly near the seams of pages.
places = st.one_of(
    st.tuples(st.integers(0, PAGES), st.integers(-5, 2)).map(lambda at: BASE + at[0] * PAGE + at[1]),
    st.integers(BASE - PAGE, BASE + PAGES * PAGE),
)
lengths = st.one_of(st.integers(0, 12), st.sampled_from([PAGE, PAGE + 1, 2 * PAGE + 1]))


def parts(addr: int, length: int) -> Iterator[tuple[int, int]]:
    """The range cut where pages end."""
    end = addr + length
    while addr < end:
        n = min(PAGE - addr % PAGE, end - addr)
        yield addr, n
        addr += n


@define
class Page:
    """What a page is."""

    prot: int
    limit: int = 7
    content: bytearray = field(factory=lambda: bytearray(PAGE))


class SpaceAgainstPages(RuleBasedStateMachine):
    """The space and the dict."""

    def __init__(self) -> None:
        super().__init__()
        self.space = AddressSpace()
        self.pages: dict[int, Page] = {}

    def _run(self, run: tuple[int, int]) -> tuple[int, int, range]:
        numbers = range(BASE // PAGE + run[0], BASE // PAGE + run[0] + run[1])
        return BASE + run[0] * PAGE, run[1] * PAGE, numbers

    @rule(run=runs, prot=rights, noreplace=st.booleans(), limit=st.sampled_from([7, 7, 7, 1]))
    def mmap(self, run: tuple[int, int], prot: int, noreplace: bool, limit: int) -> None:
        """A mapping at a place replaces what is there, or refuses to."""
        addr, length, numbers = self._run(run)
        flags = ANON | (mman.MAP_FIXED_NOREPLACE if noreplace else mman.MAP_FIXED)
        try:
            self.space.map_object(addr, length, prot & limit, flags, None, max_prot=limit)
        except OSError as exc:
            assert exc.errno == errno.EEXIST
            assert noreplace and any(number in self.pages for number in numbers)
            return
        assert not noreplace or not any(number in self.pages for number in numbers)
        self.pages |= {number: Page(prot & limit, limit) for number in numbers}

    @rule(run=runs)
    def munmap(self, run: tuple[int, int]) -> None:
        """Pages go, mapped or not."""
        addr, length, numbers = self._run(run)
        assert self.space.munmap(addr, length) == 0
        for number in numbers:
            self.pages.pop(number, None)

    @rule(run=runs, prot=rights)
    def mprotect(self, run: tuple[int, int], prot: int) -> None:
        """Rights change up to the first page that is missing or does not allow them."""
        addr, length, numbers = self._run(run)
        code = 0
        changed = []
        for number in numbers:
            page = self.pages.get(number)
            code = errno.ENOMEM if page is None else errno.EACCES if prot & ~page.limit else 0
            if page is None or code:
                break
            changed.append(page)
        try:
            assert self.space.mprotect(addr, length, prot) == code
        except OSError as exc:
            assert exc.errno == code
        for page in changed:
            page.prot = prot

    def _fault(self, addr: int, length: int, right: int, ignore_permissions: bool) -> tuple[int, FaultReason | None]:
        """How many bytes can be accessed, and why no more."""
        for at, _ in parts(addr, length):
            page = self.pages.get(at // PAGE)
            if page is None:
                return at - addr, FaultReason.UNMAPPED
            if not AccessType(page.limit if ignore_permissions else page.prot).effective() & right:
                return at - addr, FaultReason.PERMISSION
        return length, None

    def _content(self, addr: int, length: int) -> bytes:
        return b"".join(self.pages[at // PAGE].content[at % PAGE :][:n] for at, n in parts(addr, length))

    def _check(self, fault: FaultError, addr: int, expected: tuple[int, FaultReason | None]) -> None:
        assert (fault.transferred, fault.reason) == expected
        assert fault.address == addr + fault.transferred

    @rule(addr=places, length=lengths, value=st.integers(0, 255), way=ways, ignore=st.booleans())
    def write(self, addr: int, length: int, value: int, way: str, ignore: bool) -> None:
        """Bytes arrive up to the first that may not be written, by every way of writing; 0 is zeroed."""
        expected = self._fault(addr, length, mman.PROT_WRITE, ignore)
        data = bytes([value]) * length
        n = length
        try:
            if way == "stream":
                n = self.space.copy_out_from(pieces(addr, length), source(data), ignore_permissions=ignore)
            elif way == "vec":
                ranges = pieces(addr, length)
                n = (
                    copy_out_vec(self.space, ranges, data, ignore_permissions=ignore)
                    if value
                    else zero_out_vec(self.space, ranges, n, ignore_permissions=ignore)
                )
            elif value:
                n = self.space.copy_out(addr, data, ignore_permissions=ignore)
            else:
                n = self.space.zero_out(addr, n, ignore_permissions=ignore)
            assert (n, None) == expected
        except FaultError as fault:
            self._check(fault, addr, expected)
        for at, part in parts(addr, expected[0]):
            self.pages[at // PAGE].content[at % PAGE : at % PAGE + part] = bytes([value]) * part

    @rule(addr=places, length=lengths, way=ways, ignore=st.booleans())
    def read(self, addr: int, length: int, way: str, ignore: bool) -> None:
        """The bytes up to the first that may not be read, and no other, by every way of reading."""
        expected = self._fault(addr, length, mman.PROT_READ, ignore)
        dst = bytearray(b"\xee" * length)
        try:
            if way == "stream":
                n = self.space.copy_in_to(pieces(addr, length), sink(memoryview(dst)), ignore_permissions=ignore)
            elif way == "vec":
                n = copy_in_vec(self.space, pieces(addr, length), dst, ignore_permissions=ignore)
            else:
                n = self.space.copy_in(addr, dst, ignore_permissions=ignore)
            assert (n, None) == expected
        except FaultError as fault:
            self._check(fault, addr, expected)
        n = expected[0]
        assert dst == self._content(addr, n) + b"\xee" * (length - n)

    @rule(addr=places, maxlen=lengths)
    def string(self, addr: int, maxlen: int) -> None:
        """Up to the first NUL, the first fault or the limit, whichever comes first."""
        n, reason = self._fault(addr, maxlen, mman.PROT_READ, False)
        before, nul, _ = self._content(addr, n).partition(b"\0")
        try:
            found = copy_string_in(self.space, addr, maxlen)
        except NameTooLongError as error:
            assert (error.partial, nul, reason) == (before, b"", None)
        except FaultError as fault:
            assert (fault.partial, nul) == (before, b"")
            self._check(fault, addr, (n, reason))
        else:
            assert (found, nul) == (before, b"\0")

    @invariant()
    def tables_agree(self) -> None:
        """Page for page the maps say what the dict says."""
        self.space._check()
        found: dict[int, str] = {}
        for line in self.space.maps().splitlines():
            bounds, shown = line.split()[:2]
            start, end = (int(x, 16) // PAGE for x in bounds.split("-"))
            found |= dict.fromkeys(range(start, end), shown)
        assert found == {number: f"{AccessType(page.prot)}p" for number, page in self.pages.items()}


TestSpaceAgainstPages = SpaceAgainstPages.TestCase
TestSpaceAgainstPages.settings = settings(stateful_step_count=60)
