"""The conformance suite passes what is right and catches every IO of ``mutants.py``; a table shows by which rule."""

from __future__ import annotations

import pytest

from hostarch import AMD64, READ, READ_WRITE, WRITE, AccessType
from mutants import MUTANTS, Wrapper
from usermem import IO, BytesIO
from usermem.testing import Layout, Mapping, ModelBytes, ModelMemory, check_io

PAGE = 4096
# Read-write, read-only and unreadable neighbours, a hole, and the very top of user space.
LAYOUT = Layout(
    AMD64,
    (
        Mapping(0x10000, PAGE, READ),
        Mapping(0x11000, PAGE, READ_WRITE),
        Mapping(0x12000, PAGE, AccessType(0)),
        Mapping(0x14000, PAGE, WRITE),
        Mapping(AMD64.max_addr - PAGE, PAGE, READ_WRITE),
    ),
)


def space() -> tuple[IO, ModelMemory]:
    """An AddressSpace and its model."""
    return LAYOUT.address_space(), LAYOUT.model()


def test_bytes_io_conforms() -> None:
    """BytesIO keeps the contract."""
    check_io(lambda: (BytesIO(bytearray(64)), ModelBytes(bytes(64))))


def test_address_space_conforms() -> None:
    """AddressSpace keeps the contract, and so does what passes all calls on."""
    check_io(space)


def test_the_model_conforms_to_itself() -> None:
    """A layout of one page, judged by its own like."""
    layout = Layout(AMD64, (Mapping(0x10000, PAGE, READ_WRITE),))
    check_io(lambda: (layout.model(), layout.model()))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_every_mutant_is_caught(mutant: type[Wrapper]) -> None:
    """The error names the rule, the call and both answers."""

    def make() -> tuple[IO, ModelMemory]:
        io, model = space()
        return mutant(io), model

    with pytest.raises(AssertionError) as caught:
        check_io(make)
    rule, call, *answers = str(caught.value).splitlines()
    assert rule and call.strip().startswith("call") and len(answers) == 2


def test_there_are_mutants_enough() -> None:
    """At least twenty, each broken in its own way."""
    assert len({mutant.__name__ for mutant in MUTANTS}) >= 20


def test_nothing_mapped_is_nothing_to_check() -> None:
    """A factory whose model is empty is a mistake, and is told so."""
    with pytest.raises(ValueError, match="nothing"):
        check_io(lambda: (BytesIO(b""), ModelMemory()))
