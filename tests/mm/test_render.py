"""render: what is mapped, for people."""

from __future__ import annotations

import pytest

from hostarch import I386, AddrRange, mman
from usermem import AddressSpace, render
from usermem.render import human_size

FIXED = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED
R, RW, RX = mman.PROT_READ, mman.PROT_READ | mman.PROT_WRITE, mman.PROT_READ | mman.PROT_EXEC


def guest() -> AddressSpace:
    """Some mappings, with a hole between two."""
    space = AddressSpace(I386)
    space.map_object(0x10000, 0x1000, RX, FIXED, None, name="text")
    space.map_object(0x11000, 0x3000, RW, FIXED, None, name="[heap]")
    space.mmap(0x100000, 0x180000, mman.PROT_NONE, FIXED)
    space.mmap(0x300000, 0x1000, R, mman.MAP_SHARED | mman.MAP_ANONYMOUS | mman.MAP_FIXED)
    return space


def test_a_line_for_each() -> None:
    """Addresses, size, rights, name; and the holes."""
    assert render(guest(), colour=False) == (
        "00010000-00011000      4 KiB  r-xp  text\n"
        "00011000-00014000     12 KiB  rw-p  [heap]\n"
        "                     944 KiB  ....  hole\n"
        "00100000-00280000    1.5 MiB  ---p\n"
        "                     512 KiB  ....  hole\n"
        "00300000-00301000      4 KiB  r--s  /dev/zero (deleted)\n"
    )
    assert render(AddressSpace(), colour=False) == ""


def test_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the rights, if it is asked for or the output is a terminal that takes it; the words stay the same."""
    coloured = render(guest(), colour=True)
    assert coloured.startswith("\x1b[32m00010000")
    assert "\x1b[31m00011000" in coloured
    assert "\x1b[2m00100000" in coloured
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert render(guest()) == coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert render(guest()) == render(guest(), colour=False)


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (1 << 40, "1 TiB"), (1 << 64, "16 EiB")],
)
def test_sizes(n: int, text: str) -> None:
    """In the largest unit."""
    assert human_size(n) == text


def test_mappings_are_values() -> None:
    """What is listed does not change with the space."""
    space = guest()
    before = space.mappings()
    space.munmap(0, 1 << 31)
    assert [AddrRange(vma.start, vma.end).start for vma in before] == [0x10000, 0x11000, 0x100000, 0x300000]
    assert space.mappings() == []
