"""UnicornIO keeps the contract over an engine's own memory."""

from __future__ import annotations

from typing import Any

import pytest

from hostarch import READ
from usermem import IO, FaultError, FaultReason
from usermem.testing import ModelMemory, check_io, conformance_layout
from usermem.unicorn import UnicornIO

unicorn: Any = pytest.importorskip("unicorn", reason="needs Unicorn: pip install 'usermem[interop]'")
LAYOUT = conformance_layout()


def engine() -> Any:
    """An engine of x86-64 with nothing mapped."""
    return unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)


def test_an_engines_own_memory_keeps_the_contract() -> None:
    """All of it: rights, holes, the top of user space, words."""

    def make() -> tuple[IO, ModelMemory]:
        uc = engine()
        for mapping in LAYOUT.mappings:
            uc.mem_map(mapping.addr, mapping.length, int(mapping.prot))
        return UnicornIO(uc, arch=LAYOUT.arch), LAYOUT.model()

    check_io(make)


def test_the_guest_sees_what_was_written() -> None:
    """And the other way round; a copy that runs into a hole says how far it got."""
    uc = engine()
    uc.mem_map(0x10000, 0x1000)
    io = UnicornIO(uc)
    io.copy_out(0x10000, b"\x48\xff\x05\xf9\x0f\x00\x00"[:7].ljust(8, b"\0"))
    assert bytes(uc.mem_read(0x10000, 3)) == b"\x48\xff\x05"
    with pytest.raises(FaultError) as caught:
        io.read_bytes(0x10FF0, 32)
    assert (caught.value.transferred, caught.value.address, caught.value.access) == (16, 0x11000, READ)
    assert caught.value.reason is FaultReason.UNMAPPED
