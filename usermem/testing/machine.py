"""GuestMachine: a hypothesis state machine that maps, unmaps, protects and uses a guest's memory, and the model's.

Run as it is, it fuzzes :class:`usermem.AddressSpace`. Subclass it to fuzz a simulator: ``make_memory`` gives the
memory, and rules of your own make system calls on ``self.memory`` and say by ``self.model`` what must come of them::

    class MySimulator(GuestMachine):
        @rule(addr=GuestMachine.addresses, n=st.integers(0, 99))
        def read(self, addr, n):
            assert my_sys_read(self.memory, addr, n) == expected(self.model, addr, n)

    TestMySimulator = MySimulator.TestCase

After each step all memory and all rights are compared. Needs hypothesis (``pip install 'usermem[testing]'``).
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar, Protocol

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hostarch import AMD64, AddrRangeSeq, Arch, mman
from usermem.address_space import AddressSpace
from usermem.errors import linux_result
from usermem.memory_io import IO
from usermem.testing import strategies as guests
from usermem.testing.compare import check_memory
from usermem.testing.model import ModelMemory
from usermem.testing.operations import KINDS, Operation, outcome


class GuestMemory(IO, Protocol):
    """An IO with the system calls that change its mappings."""

    def mmap(self, addr: int, length: int, prot: int, flags: int) -> int:
        """mmap(2) of private anonymous memory at a fixed address."""
        ...

    def munmap(self, addr: int, length: int) -> int:
        """munmap(2)."""
        ...

    def mprotect(self, addr: int, length: int, prot: int) -> int:
        """mprotect(2). Raises OSError; what it had changed before that stays changed."""
        ...


_PROTS = st.sampled_from([*[mman.PROT_READ | mman.PROT_WRITE] * 4, *range(8)])


@cache
def _of(arch: Arch, pages: int, what: str) -> st.SearchStrategy[Any]:
    """What machines of one kind draw, made once."""
    first = arch.page_round_up(arch.min_addr)
    ends = tuple(first + n * arch.page_size for n in range(pages + 1))
    most = arch.page_size + 16
    first_and_count = st.tuples(st.integers(0, pages - 1), st.sampled_from([1, 1, 2, pages]))
    made: dict[str, st.SearchStrategy[Any]] = {
        "beginnings": st.lists(st.one_of(_PROTS, _PROTS, _PROTS, st.none()), min_size=pages, max_size=pages),
        "runs": first_and_count.map(lambda run: (run[0], min(run[1], pages - run[0]))),
        "addresses": guests.addresses(arch, ends),
        "iovecs": guests.iovecs_near(arch, ends, most=most),
    }
    for name, kinds in KINDS.items():
        made[name] = guests.operations(arch, ends, most, kinds)
    return made[what]


def _drawn(what: str) -> st.SearchStrategy[Any]:
    """A strategy that knows the arch and the pages of the machine that draws from it."""
    return st.runner().flatmap(lambda machine: _of(machine.arch, machine.pages, what))


class GuestMachine(RuleBasedStateMachine):
    """``self.memory``, from ``make_memory``, and ``self.model``, which are told the same.

    The guest's mappings lie in the first ``pages`` pages of its user space. ``arch`` is its machine.
    """

    arch: ClassVar[Arch] = AMD64
    pages: ClassVar[int] = 6

    addresses: ClassVar[st.SearchStrategy[int]] = _drawn("addresses")
    """For rules of your own: addresses, most of them at the ends of the guest's pages."""
    iovecs: ClassVar[st.SearchStrategy[AddrRangeSeq]] = _drawn("iovecs")
    """For rules of your own: what the guest can pass to readv, at the same places."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: GuestMemory = self.make_memory()
        self.model: ModelMemory = ModelMemory(self.arch)

    def make_memory(self) -> GuestMemory:
        """The memory to be fuzzed, with nothing mapped in its first pages. A new AddressSpace."""
        return AddressSpace(self.arch)

    def teardown(self) -> None:
        """Close the memory, if it can be closed."""
        close = getattr(self.memory, "close", None)
        if close is not None:
            close()

    @initialize(prots=_drawn("beginnings"))
    def begin(self, prots: list[int | None]) -> None:
        """Most pages are mapped from the start, each for itself, so that there is something to use."""
        for page, prot in enumerate(prots):
            if prot is not None:
                self.mmap((page, 1), prot)

    @rule(run=_drawn("runs"), prot=_PROTS)
    def mmap(self, run: tuple[int, int], prot: int) -> None:
        """Map pages (the first, how many), over what is there."""
        addr, length = self._range(run)
        flags = mman.MAP_PRIVATE | self.arch.map_flags.fixed | self.arch.map_flags.anonymous
        assert self.memory.mmap(addr, length, prot, flags) == addr
        self.model.map(addr, length, prot)

    @rule(run=_drawn("runs"))
    def munmap(self, run: tuple[int, int]) -> None:
        """Unmap pages, mapped or not."""
        addr, length = self._range(run)
        assert self.memory.munmap(addr, length) == 0
        self.model.unmap(addr, length)

    @rule(run=_drawn("runs"), prot=_PROTS)
    def mprotect(self, run: tuple[int, int], prot: int) -> None:
        """Change rights up to the first page that is not mapped: 0, or the same errno."""
        addr, length = self._range(run)
        results = []
        for protect in (self.memory.mprotect, self.model.protect):
            try:
                results.append(protect(addr, length, prot) or 0)
            except OSError as exc:
                results.append(linux_result(exc))
        assert results[0] == results[1], f"mprotect returned {results[0]}, must return {results[1]}"

    @rule(operation=_drawn("copies"))
    def copy(self, operation: Operation) -> None:
        """A copy, zeroes, a string: the same outcome on both."""
        self.check(operation)

    @rule(operation=_drawn("streams"))
    def stream(self, operation: Operation) -> None:
        """A reader or writer over ranges, an iovec table: the same."""
        self.check(operation)

    @rule(operation=_drawn("vectors"))
    def vector(self, operation: Operation) -> None:
        """A buffer over ranges: the same."""
        self.check(operation)

    @rule(operation=_drawn("atomics"))
    def atomic(self, operation: Operation) -> None:
        """A word: the same."""
        self.check(operation)

    def check(self, operation: Operation) -> None:
        """Run an operation on the memory and on the model. Raises AssertionError if the outcomes differ."""
        found, expected = outcome(operation, self.memory), outcome(operation, self.model)
        assert found == expected, f"{operation}\n  the memory {found}\n  must give  {expected}"

    @invariant()
    def same_memory(self) -> None:
        """All bytes and all rights are the model's; the memory's own tables hold, if it can check them (``_check``)."""
        check_tables = getattr(self.memory, "_check", None)
        if check_tables is not None:
            check_tables()
        check_memory(self.memory, self.model)

    def _range(self, run: tuple[int, int]) -> tuple[int, int]:
        first, count = run
        size = self.arch.page_size
        return self.arch.page_round_up(self.arch.min_addr) + first * size, count * size
