"""The conformance suite passes what is right and catches every IO of ``mutants.py``; a table shows by which rule."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from campaign import NIGHTLY
from helper_mutants import HELPER_MUTANTS, Helper
from hostarch import AMD64, READ, READ_WRITE
from mutants import MUTANTS, Wrapper
from subtle_mutants import SUBTLE_MUTANTS
from usermem import IO, BytesIO
from usermem.observe import FaultPlan, FaultyIO
from usermem.testing import Layout, Mapping, ModelBytes, ModelMemory, check_io, conformance, conformance_layout
from watched_io import WatchedIO

PAGE = 4096
LAYOUT = conformance_layout()
# What is enough for most.
SMALL_LAYOUT = Layout(AMD64, (Mapping(0x10000, PAGE, READ_WRITE), Mapping(0x11000, PAGE, READ)))


def space() -> tuple[IO, ModelMemory]:
    """An AddressSpace and its model."""
    return LAYOUT.address_space(), LAYOUT.model()


def wrapped_space(wrapper: Callable[[IO], IO]) -> tuple[IO, ModelMemory]:
    """The same in a wrapper."""
    io, model = space()
    return wrapper(io), model


def small_space(wrapper: Callable[[IO], IO]) -> tuple[IO, ModelMemory]:
    """A smaller one in a wrapper."""
    return wrapper(SMALL_LAYOUT.address_space()), SMALL_LAYOUT.model()


def test_bytes_io_conforms() -> None:
    """BytesIO keeps the contract."""
    check_io(lambda: (BytesIO(bytearray(64)), ModelBytes(bytes(64))))


def test_address_space_conforms() -> None:
    """AddressSpace keeps the contract."""
    check_io(space)


def test_the_model_conforms_to_itself() -> None:
    """A layout of one page, judged by its own like."""
    layout = Layout(AMD64, (Mapping(0x10000, PAGE, READ_WRITE),))
    check_io(lambda: (layout.model(), layout.model()))


# Which check catches which mutant: the start of the rule that the error names.
CAUGHT_BY = {
    "what was written is what is read": [
        "LastByteOfAPageLost",
        "PermissionsNeverIgnored",
        "EndsAtAnInnerPageEnd",
        "WritesElsewhereToo",
    ],
    "copy_in moves all, or says how much": [
        "FaultCountsNothing",
        "WrongReason",
        "TopIsCutOff",
        "FourthFaultIsACount",
        "CountsHaveAPart",
    ],
    "copy_out moves all, or says how much": [
        "FaultCountsOneMore",
        "FaultAtTheStart",
        "WrongAccess",
        "AllOrNothing",
        "PermissionsIgnored",
        "PermissionOfTheLastPageOnly",
    ],
    "zero_out moves all, or says how much": ["FaultAtThePage", "ZeroesWithBlanks", "FaultsCannotBePickled"],
    "copy_in of no bytes": ["ZeroLengthRejected"],
    "copy_out of no bytes": ["HugeAddressesOverflow"],
    "zero_out of no bytes": ["ZeroLengthUnchecked", "TypeErrorOfItsOwn"],
    "a negative count is a ValueError": ["NegativeCountTaken"],
    "a reader: called at most once": [
        "ReaderCalledForNothing",
        "ReaderGetsLess",
        "RangesCheckedLate",
        "RangesTakenForOneSpan",
        "FaultCountedFromTheFirstRange",
        "MessagesRefused",
    ],
    "a reader: a stream that stops before the hole is no fault": ["ReaderCalledTwice", "ShortStreamFaults"],
    "a reader: its own error passes through": ["OwnErrorWithoutItsCount", "OwnOSErrorIsAFault"],
    "a reader: nothing to give now": ["WouldBlockIsTheEnd"],
    "a writer: called at most once": ["WriterSeesOldBytes", "TwoRangesAtMost", "NoRangesRaise"],
    "a writer: its own error passes through": ["OwnErrorReplaced", "FilledPrefixIsNoFault"],
    "a writer: would-block after progress": ["WouldBlockAfterProgressRaised"],
    "a writer: permissions are ignored if": ["StreamOptionsIgnored"],
    "a page may be used for the first time by any call": ["FirstUseMustBeACopy"],
    "a string may be longer than a page": ["MiddleOfLongCopiesLost"],
    "load_uint32": ["LoadNeedsToWrite", "MisalignedWordsTaken"],
    "swap_uint32": ["SwapDoesNotStore", "AtomicOptionsIgnored", "HalfOfTheWordStored"],
    "compare_and_swap_uint32": [
        "CompareAndSwapAlwaysStores",
        "CompareAndSwapReturnsTheNew",
        "NeverLooksAgain",
    ],
    "a string ends at its NUL": [
        "NulMissedAtTheBoundary",
        "WholeChunkMustBeReadable",
        "NulDoesNotCount",
        "TruncatedStringIsWhole",
        "StringAtAFaultIsWhole",
        "StringFaultLosesItsPart",
        "StringFaultsAtItsStart",
    ],
    "a vector moves the lesser of both sizes": [
        "VectorEndsAtItsFirstRange",
        "VectorFillsTooMuch",
        "VectorChecksWhatItDoesNotReach",
        "VectorFaultCountsItsRangeOnly",
    ],
}
NEED_EVERY_EDGE = ("PermissionsIgnored", "PermissionOfTheLastPageOnly", "StreamOptionsIgnored")
NEED_OTHER_CALLS = ("FourthFaultIsACount",)
ALL_MUTANTS = [*MUTANTS, *SUBTLE_MUTANTS, *HELPER_MUTANTS]
RULE_OF = {name: rule for rule, names in CAUGHT_BY.items() for name in names}


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make check_io try some rules only. The nightly profile tries all rules before them, too."""
    all_cases = conformance._cases

    def try_only(*rules: str) -> None:
        def cases(*layout: Any) -> Iterator[Any]:
            return (case for case in all_cases(*layout) if case.rule.startswith(rules))

        if not NIGHTLY:
            monkeypatch.setattr(conformance, "_cases", cases)

    return try_only


@pytest.mark.parametrize("mutant", ALL_MUTANTS, ids=lambda mutant: mutant.__name__)
def test_every_mutant_is_caught(mutant: type[Wrapper], only: Callable[..., None]) -> None:
    """By the check that is meant for it; the error names the rule, the call and both answers."""
    only(RULE_OF[mutant.__name__])
    with pytest.raises(AssertionError) as caught:
        check_io(lambda: (wrapped_space if mutant.__name__ in NEED_EVERY_EDGE else small_space)(mutant))
    rule, call, *answers = str(caught.value).splitlines()
    assert rule.startswith(RULE_OF[mutant.__name__])
    assert rule.endswith("(after other calls)") == (mutant.__name__ in NEED_OTHER_CALLS)
    assert call.strip().startswith("call") and len(answers) == 2


class Refuses(Wrapper):
    """Without atomics."""

    def load_uint32(self, addr: int, *, ignore_permissions: bool = False) -> int:
        raise OSError(errno.EOPNOTSUPP, "no")

    def swap_uint32(self, addr: int, new: int, *, ignore_permissions: bool = False) -> int:
        raise OSError(errno.EOPNOTSUPP, "no")

    def compare_and_swap_uint32(self, addr: int, old: int, new: int, *, ignore_permissions: bool = False) -> int:
        raise OSError(errno.EOPNOTSUPP, "no")


class Pretends(Refuses):
    def load_uint32(self, addr: int, *, ignore_permissions: bool = False) -> int:
        return 7


class WrongError(Refuses):
    def swap_uint32(self, addr: int, new: int, *, ignore_permissions: bool = False) -> int:
        raise OSError(errno.EINVAL, "no")


def test_atomics_may_be_refused(only: Callable[..., None]) -> None:
    """If that was said: each by EOPNOTSUPP; a value, or another error, is found."""
    only("load_uint32", "swap_uint32", "compare_and_swap_uint32")
    check_io(lambda: small_space(Refuses), atomics=False)
    for mutant in (Pretends, WrongError):
        with pytest.raises(AssertionError, match="an IO without atomics refuses them"):
            check_io(lambda mutant=mutant: small_space(mutant), atomics=False)  # type: ignore[misc]
    with pytest.raises(AssertionError, match="load_uint32"):
        check_io(lambda: small_space(Refuses))


def test_wrappers_conform() -> None:
    """What passes all calls on is as good as what is inside: so a mutant is caught for its own mistake.

    Helper, which the other mutants are made of, is in test_what_it_costs.
    """
    check_io(lambda: small_space(lambda io: FaultyIO(WatchedIO(io), FaultPlan())))


def test_there_are_mutants_enough() -> None:
    """Each is broken in its own way, and is in the table."""
    assert {mutant.__name__ for mutant in ALL_MUTANTS} == set(RULE_OF)
    assert len(RULE_OF) == sum(map(len, CAUGHT_BY.values())) >= 60


@pytest.mark.parametrize("harmless", [0, 20, 40])
@pytest.mark.parametrize("where", [0x10400, 0x10FF9])
def test_the_call_that_did_the_damage_is_named(harmless: int, where: int, only: Callable[..., None]) -> None:
    """It is a zero_out among many calls on one memory; what it harms lies far away, or where calls read."""

    class Harmful(Wrapper):
        calls = 0

        def zero_out(self, addr: int, n: int, *, ignore_permissions: bool = False) -> int:
            done = super().zero_out(addr, n, ignore_permissions=ignore_permissions)
            self.calls += 1
            if self.calls > harmless:
                self.inner.copy_out(where, b"harm", ignore_permissions=True)
            return done

    only("zero_out", "a vector")
    with pytest.raises(AssertionError) as caught:
        check_io(lambda: small_space(Harmful))
    rule, call, found, _ = str(caught.value).splitlines()
    assert call.strip().startswith(("call      ZeroOut(", "call      ZeroOutVec("))
    assert rule.endswith("(after other calls)") == bool(harmless)
    assert b"harm".hex() in found


def test_what_it_costs() -> None:
    """The number of calls on an IO is bounded: with every edge it is 2 s over a dict of pages."""
    calls = 0

    class Counted(Helper):
        def __getattribute__(self, name: str) -> Any:
            nonlocal calls
            calls += not name.startswith("_") and hasattr(IO, name)
            return super().__getattribute__(name)

    check_io(lambda: small_space(Counted))
    assert 10_000 < calls < 80_000, calls


def test_nothing_mapped_is_nothing_to_check() -> None:
    """A factory whose model is empty is a mistake, and is told so."""
    with pytest.raises(ValueError, match="nothing"):
        check_io(lambda: (BytesIO(b""), ModelMemory()))
