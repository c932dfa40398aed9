"""The example of a loader, and the running kernel's: the same mappings and bytes before a program's first step."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from hostarch import AMD64, I386, Arch, auxvec
from kernel_messages import needs_linux
from kernel_program import Program, stopped_at_entry
from usermem import AddressSpace, Stack

pytestmark = needs_linux
pytest.importorskip("elftools", reason="needs pyelftools: pip install -e '.[interop]'", exc_type=ImportError)
HERE = Path(__file__).resolve().parent
SOURCE = """
char zeros[200000];
char some[5000] = {1, 2, 3};
const char only_read[9000] = {4};
void _start(void) { for (;;) ; }
"""
BUILDS = {
    "static": ["-static", "-no-pie"],
    "static, stack with code": ["-static", "-no-pie", "-Wl,-z,execstack"],
    "static, one segment": ["-static", "-no-pie", "-Wl,-N"],
    "static, large pages": ["-static", "-no-pie", "-Wl,-z,max-page-size=0x200000"],
    "static pie": ["-static-pie", "-fPIE"],
    "dynamic": ["-pie", "-fPIE"],
    "dynamic, large pages": ["-pie", "-fPIE", "-Wl,-z,max-page-size=0x200000"],
    "dynamic, fixed": ["-no-pie", "-Wl,--no-as-needed", "-lc"],
    "static, 32 bits": ["-m32", "-static", "-no-pie"],
}
FILES = ["/bin/true", "/bin/ls", "/bin/busybox", "/bin/bash", "/sbin/ldconfig", "/lib64/ld-linux-x86-64.so.2"]


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example."""
    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module("elf_loader")


Row = tuple[int, int, str, int, bool]
"""A mapping: bounds, rights, offset, whether a file is mapped."""


def rows_of(maps: list[list[str]]) -> list[Row]:
    """Mappings as numbers, but for those that are the kernel's own."""
    found = []
    for bounds, rights, offset, _, inode, *name in maps:
        if name and name[0] in ("[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]"):
            continue
        start, end = (int(bound, 16) for bound in bounds.split("-"))
        found.append((start, end, rights, int(offset, 16) if inode != "0" else 0, inode != "0"))
    return found


def rows_in(space: AddressSpace) -> list[Row]:
    """The mappings of a space."""
    return rows_of([line.split(maxsplit=5) for line in space.maps().splitlines()])


def auxv_of(program: Program, arch: Arch) -> dict[int, int]:
    """The auxiliary vector of a process."""
    numbers = [value for (value,) in arch.pointer.iter_unpack((program.folder / "auxv").read_bytes())]
    return dict(zip(numbers[::2], numbers[1::2], strict=True))


def compare(loader: Any, path: str, arch: Arch = AMD64) -> None:
    """All that is mapped by both, file by file, its bytes, the heap, and what the program is told."""
    argv = [path, "an argument"]
    with stopped_at_entry(path, argv) as program:
        rows = rows_of(program.maps())
        auxv, stat = auxv_of(program, arch), program.stat()
        with AddressSpace(evolve(arch, max_addr=rows[-1][1])) as space:
            found = loader.load(space, path, argv, [])
            ours = told(space, found.stack)
            bias = auxv[auxvec.AT_ENTRY] - ours[auxvec.AT_ENTRY]
            interpreter = auxv[auxvec.AT_BASE] - ours[auxvec.AT_BASE]
            assert bias == 0 or found.interpreter is None  # programs alone lie where there is room, as interpreters do
            assert auxv[auxvec.AT_PHDR] - ours[auxvec.AT_PHDR] == bias
            for kind in (auxvec.AT_PHENT, auxvec.AT_PHNUM, auxvec.AT_PAGESZ):
                assert auxv[kind] == ours[kind]
            heap = arch.page_round_up(stat[47])
            end = arch.page_round_up(found.image.end)
            # Before 6.15 the heap followed the bss of all programs that are not at random addresses.
            assert heap == end + bias or (heap == space.brk(0) != end)
            assert space.brk(0) in (end, heap)
            shifts = {found.image: bias, found.interpreter: interpreter}
            theirs = set(rows)
            for row in rows_in(space):
                shift = shift_of(row, found, shifts)
                there = (row[0] + shift, row[1] + shift, *row[2:])
                assert there in theirs
                theirs.remove(there)
                if row[1] != found.stack.top:
                    data = space.read_bytes(row[0], row[1] - row[0], ignore_permissions=True)
                    assert data == program.read(there[0], len(data))
            assert theirs == set()


def shift_of(row: Row, found: Any, shifts: dict[Any, int]) -> int:
    """How much higher the kernel has a mapping."""
    for image, shift in shifts.items():
        if image is not None and image.bias <= row[0] < image.end:
            return shift
    return 0


def told(space: AddressSpace, stack: Stack) -> dict[int, int]:
    """The auxiliary vector on the stack."""
    size = space.arch.pointer_size
    data = space.read_bytes(stack.auxv, min(stack.top - stack.auxv, 2 * 9 * size))
    words = [int.from_bytes(data[i : i + size], space.arch.byte_order) for i in range(0, len(data), size)]
    return dict(zip(words[::2], words[1::2], strict=True))


@pytest.mark.parametrize("path", [*FILES, sys.executable])
def test_programs_of_this_host(loader: Any, path: str) -> None:
    """Static and dynamic programs that are there."""
    if not Path(path).is_file():
        pytest.skip(f"there is no {path}")
    if Path(path).read_bytes()[18:20] != b"\x3e\0":
        pytest.skip(f"{path} is not for x86-64")
    compare(loader, path)


@pytest.mark.parametrize("build", BUILDS)
def test_programs_that_are_made(loader: Any, tmp_path: Path, build: str) -> None:
    """Programs with other headers."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    (tmp_path / "program.c").write_text(SOURCE)
    command = [compiler, "-nostdlib", "-o", "program", "program.c", *BUILDS[build]]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"the C compiler says {made.stderr}")
    compare(loader, str(tmp_path / "program"), I386 if "-m32" in BUILDS[build] else AMD64)
