"""The mappings of an AddressSpace split and merge as Linux's do, seen in maps(), which has the kernel's format."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from edge_layouts import BASE, FIXED, PAGE, RW, GrowingObject
from hostarch import AMD64, ANY_ACCESS, I386, READ, READ_WRITE, mman
from map_rows import rows
from usermem import AddressSpace, render
from usermem.mm.faulting import can_map

R = mman.PROT_READ


def apply(space: AddressSpace, step: str) -> None:
    """Do what a step like ``map rw 0-3``, ``unmap 1-2`` or ``protect - 1-2`` says, in pages from BASE."""
    what, *rights, pages = step.split()
    prot = sum("-rwx".index(right) + (right == "x") for right in "".join(rights))
    start, end = (BASE + int(page) * PAGE for page in pages.split("-"))
    if what == "map":
        space.mmap(start, end - start, prot, FIXED)
    elif what == "unmap":
        space.munmap(start, end - start)
    else:
        space.mprotect(start, end - start, prot)


STEPS: list[tuple[str, list[tuple[int, int, str]]]] = [
    ("map rw 0-1, map rw 1-2", [(0, 2, "rw-p")]),
    ("map rw 1-2, map rw 0-1", [(0, 2, "rw-p")]),
    ("map rw 0-1, map r 1-2", [(0, 1, "rw-p"), (1, 2, "r--p")]),
    ("map rw 0-1, map rw 2-3", [(0, 1, "rw-p"), (2, 3, "rw-p")]),
    ("map rw 0-1, map rw 2-3, map rw 1-2", [(0, 3, "rw-p")]),
    ("map rw 0-1, map r 2-3, map rw 1-2", [(0, 2, "rw-p"), (2, 3, "r--p")]),
    ("map rw 0-3, unmap 1-2", [(0, 1, "rw-p"), (2, 3, "rw-p")]),
    ("map rw 0-3, unmap 0-1", [(1, 3, "rw-p")]),
    ("map rw 0-3, unmap 2-9", [(0, 2, "rw-p")]),
    ("map rw 0-3, unmap 0-3", []),
    ("map rw 0-1, map r 1-2, map x 2-3, unmap 0-3", []),
    ("map rw 0-3, protect r 1-2", [(0, 1, "rw-p"), (1, 2, "r--p"), (2, 3, "rw-p")]),
    ("map rw 0-3, protect r 1-2, protect rw 1-2", [(0, 3, "rw-p")]),
    ("map rw 0-3, protect rw 1-2", [(0, 3, "rw-p")]),
    ("map rw 0-2, map r 2-4, protect r 0-2", [(0, 4, "r--p")]),
    ("map rw 0-2, map r 2-4, protect r 1-2", [(0, 1, "rw-p"), (1, 4, "r--p")]),
    ("map rw 0-2, map r 2-4, protect rwx 1-3", [(0, 1, "rw-p"), (1, 3, "rwxp"), (3, 4, "r--p")]),
    ("map r 0-1, map w 1-2, map x 2-3, protect - 0-3", [(0, 3, "---p")]),
    ("map rw 0-4, map r 1-2", [(0, 1, "rw-p"), (1, 2, "r--p"), (2, 4, "rw-p")]),
    ("map rw 0-4, map rw 1-2", [(0, 4, "rw-p")]),
    ("map r 1-2, map w 3-4, map rw 0-5", [(0, 5, "rw-p")]),
]


@pytest.mark.parametrize(("steps", "expected"), STEPS, ids=[row[0] for row in STEPS])
def test_splitting_and_merging(steps: str, expected: list[tuple[int, int, str]]) -> None:
    """Mappings are cut where a call's range ends, and neighbours that say the same are one."""
    space = AddressSpace()
    for step in steps.split(", "):
        apply(space, step)
        space._check()
    assert rows(space) == expected


def test_what_does_not_merge() -> None:
    """Neighbours that differ in kind, name, limit or object stay two, also when their rights are the same."""
    file, other = GrowingObject(b"", 9 * PAGE), GrowingObject(b"", 9 * PAGE)
    space = AddressSpace()
    at = iter(range(BASE, BASE + 99 * PAGE, PAGE))
    space.map_object(next(at), PAGE, R, FIXED, None)
    space.map_object(next(at), PAGE, R, FIXED | mman.MAP_GROWSDOWN, None)
    space.map_object(next(at), PAGE, R, FIXED, None, name="[a]")
    space.map_object(next(at), PAGE, R, FIXED, None, name="[b]")
    space.map_object(next(at), PAGE, R, FIXED, None, max_prot=READ)
    space.map_object(next(at), PAGE, R, FIXED, None, max_prot=READ_WRITE)
    space.map_object(next(at), PAGE, R, FIXED, file, 0)
    space.map_object(next(at), PAGE, R, FIXED, file, 2 * PAGE)  # not what follows
    space.map_object(next(at), PAGE, R, FIXED, other, 3 * PAGE)
    assert [row[:2] for row in rows(space)] == [(i, i + 1) for i in range(9)]
    space.map_object(next(at), PAGE, R, FIXED, other, 4 * PAGE)  # what follows
    assert [row[:2] for row in rows(space)][-1] == (8, 10)
    space._check()


def test_mprotect_up_to_a_hole() -> None:
    """ENOMEM at a page that is not mapped comes after the pages before it were changed, and none behind it."""
    space = AddressSpace()
    apply(space, "map rw 0-4")
    apply(space, "unmap 2-3")
    with pytest.raises(OSError, match="Cannot allocate memory"):
        apply(space, "protect r 1-4")
    assert rows(space) == [(0, 1, "rw-p"), (1, 2, "r--p"), (3, 4, "rw-p")]
    with pytest.raises(OSError, match="Cannot allocate memory"):
        apply(space, "protect - 2-4")
    assert rows(space) == [(0, 1, "rw-p"), (1, 2, "r--p"), (3, 4, "rw-p")]


def test_mprotect_up_to_a_limit() -> None:
    """EACCES at a mapping that allows less comes after the ones before it were changed, and before a hole behind it."""
    space = AddressSpace()
    space.mmap(BASE, 5 * PAGE, RW, FIXED)
    space.map_object(BASE + 5 * PAGE, 3 * PAGE, R, FIXED, None, max_prot=READ)
    with pytest.raises(OSError, match="Permission denied"):
        apply(space, "protect rwx 3-20")
    assert rows(space) == [(0, 3, "rw-p"), (3, 5, "rwxp"), (5, 8, "r--p")]


def test_map_object_limits() -> None:
    """A mapping's own rights are kept as asked, its limit stops mprotect, and any right within it is granted."""
    space = AddressSpace()
    space.map_object(BASE, PAGE, mman.PROT_NONE, FIXED, None, max_prot=READ_WRITE)
    assert space.mprotect(BASE, PAGE, RW) == 0
    with pytest.raises(OSError, match="Permission denied"):
        space.mprotect(BASE, PAGE, mman.PROT_EXEC)
    space.map_object(BASE, PAGE, mman.PROT_NONE, FIXED, None, max_prot=ANY_ACCESS)
    assert space.mprotect(BASE, PAGE, RW | mman.PROT_EXEC) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/maps is Linux's")
def test_maps_has_the_kernels_format() -> None:
    """Every line of this process's own maps that names no file comes out of ours letter for letter."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if " 00:00 0 " in line + " "]
    seen = 0
    for line in lines:
        bounds, rights, offset, _, _, *name = line.split()
        start, end = (int(x, 16) for x in bounds.split("-"))
        if end > AMD64.max_addr or int(offset, 16) or rights[3] != "p":
            continue
        space = AddressSpace()
        prot = sum(1 << i for i, right in enumerate(rights[:3]) if right != "-")
        space.map_object(start, end - start, prot, FIXED, None, name=" ".join(name))
        assert space.maps() == line + "\n"
        seen += 1
    assert seen > 2


def test_a_name_with_a_newline() -> None:
    """A newline in a name is shown as \\012, as proc_pid_maps(5) says, so that a mapping is a line."""
    space = AddressSpace()
    space.map_object(BASE, PAGE, RW, FIXED, None, name="two\nlines")
    assert space.maps().count("\n") == 1
    assert space.maps().endswith(" two\\012lines\n")


def test_maps_of_32_bits() -> None:
    """Addresses have eight digits at least, a name stands where a 32-bit kernel puts it, shared and offsets show."""
    space = AddressSpace(I386)
    file = GrowingObject(b"", PAGE)
    space.map_object(0x8048000, PAGE, R | mman.PROT_EXEC, FIXED, None, name="/bin/true")
    space.map_object(0x8049000, PAGE, RW, mman.MAP_SHARED | mman.MAP_FIXED, file, 3 * PAGE)
    assert space.maps() == (
        "08048000-08049000 r-xp 00000000 00:00 0          /bin/true\n08049000-0804a000 rw-s 00003000 00:00 0 \n"
    )


NAMES = {
    "a title, and a screen that is cleared": ("\x1b]0;owned\x07\x1b[2Jevil", "\\033]0;owned\\007\\033[2Jevil"),
    "control characters of eight bits": ("\x9b2J\x7f\r\t", "\\302\\2332J\\177\\015\\011"),
    "bytes that are no UTF-8": (os.fsdecode(b"\xff\xfe-not-utf8"), "\\377\\376-not-utf8"),
    "half a surrogate pair": ("\ud800", "\\355\\240\\200"),
    "another direction": ("\u202egpj.exe", "\\342\\200\\256gpj.exe"),
    "a line separator": ("two\u2028lines", "two\\342\\200\\250lines"),
    "letters": ("\u00fcber \u65e5\u672c [a] \\ b", "\u00fcber \u65e5\u672c [a] \\ b"),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_are_safe_to_print(case: str, tmp_path: Path) -> None:
    """Of files and of mappings, in maps, in render and in an error: what is not printable is octal, as a newline is."""
    name, shown = NAMES[case]
    space = AddressSpace()
    space.map_object(BASE, PAGE, RW, FIXED, None, name=name)
    if can_map() and name != "\ud800":  # which no file is called
        path = tmp_path / name
        path.write_bytes(bytes(PAGE))
        with path.open("rb") as file:
            space.mmap(BASE + PAGE, PAGE, R, mman.MAP_PRIVATE | mman.MAP_FIXED, file.fileno(), 0)
        with pytest.raises(ValueError, match="must not be aliased") as caught:
            space.host_runs(BASE + PAGE, BASE + 2 * PAGE)
        assert f"/{shown}, must" in str(caught.value)
    for text in (space.maps(), render(space, colour=False)):
        lines = text.splitlines()
        assert len(lines) == len(space.mappings())
        assert lines[0].endswith(f" {shown}")
        assert all(line.endswith(f"/{shown}") for line in lines[1:])
        text.encode()
