"""A program's loader, as a simulator would write it: which mapping calls an ELF file asks for.

``load`` maps a program, its interpreter, its bss, its heap and its stack where execve(2) does, by the public calls of
an :class:`usermem.AddressSpace` alone. pyelftools reads the headers.

Source: Linux fs/binfmt_elf.c (load_elf_binary, elf_load).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from attrs import frozen
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from hostarch import Arch, auxvec, mman
from usermem import AddressSpace, Stack, build_stack

_MACHINES = {"amd64": "EM_X86_64", "i386": "EM_386", "arm64": "EM_AARCH64"}
_RIGHTS = ((4, mman.PROT_READ), (2, mman.PROT_WRITE), (1, mman.PROT_EXEC))  # PF_R, PF_W, PF_X


@frozen
class Image:
    """An ELF file in memory: ``bias`` is what was added to its addresses, ``end`` the first address behind its bss."""

    bias: int
    entry: int
    phdr: int
    end: int


@frozen
class Program:
    """What a CPU needs to start it: the program counter, and the stack. ``interpreter`` is None for a static one."""

    entry: int
    stack: Stack
    image: Image
    interpreter: Image | None


def load(
    space: AddressSpace,
    path: str,
    argv: Sequence[str | bytes],
    envp: Sequence[str | bytes],
    *,
    name: str | None = None,
    auxv: Sequence[tuple[int, int]] = (),
) -> Program:
    """Map a program and what it needs. Raises ELFError if it is no ELF file; OSError as mmap and build_stack.

    The program is told that its file has another ``name``, and ``auxv`` besides what is said of the file here.
    """
    with Path(path).open("rb") as file:
        elf = open_elf(file, space.arch)
        linker = elf.linker
        # A program that has an interpreter lies at two thirds of user space; an interpreter wherever there is room.
        base = space.arch.max_addr // 3 * 2
        image = map_image(space, file, elf, base if linker else 0)
        interpreter = None
        if linker:
            if not Path(linker).is_file():  # to open a FIFO may take for ever
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), linker)
            with Path(linker).open("rb") as second:
                interpreter = map_image(space, second, open_elf(second, space.arch), 0)
        # The heap follows the bss, but not where that may be near the stack.
        alone = elf["e_type"] == "ET_DYN" and not linker
        space.set_brk(space.arch.page_round_up(base if alone else image.end))
        flags = [segment["p_flags"] for segment in elf.iter_segments("PT_GNU_STACK")]
        entries = [
            (auxvec.AT_PAGESZ, space.arch.page_size),
            (auxvec.AT_PHDR, image.phdr),
            (auxvec.AT_PHENT, elf["e_phentsize"]),
            (auxvec.AT_PHNUM, elf["e_phnum"]),
            (auxvec.AT_BASE, interpreter.bias if interpreter else 0),
            (auxvec.AT_ENTRY, image.entry),
            (auxvec.AT_RANDOM, os.urandom(16)),
            (auxvec.AT_EXECFN, name or path),
            *auxv,
        ]
    stack = build_stack(space, argv, envp, entries, prot=rights(flags[0] if flags else 6))
    return Program((interpreter or image).entry, stack, image, interpreter)


def open_elf(file: BinaryIO, arch: Arch) -> Any:
    """The headers of a file that may be anything, with its ``linker``.

    Raises ELFError for one that no process of this machine can have.
    """
    try:
        elf: Any = ELFFile(file)
        loads = list(elf.iter_segments("PT_LOAD"))
        elf.linker = next((segment.get_interp_name() for segment in elf.iter_segments("PT_INTERP")), None)
    except (ValueError, OverflowError, LookupError) as error:  # numbers that no file has
        raise ELFError(f"not an ELF file: {error}") from None
    if elf.elfclass != 8 * arch.pointer_size or elf["e_machine"] != _MACHINES.get(arch.family, elf["e_machine"]):
        raise ELFError("an ELF file of another machine")
    if elf["e_type"] not in ("ET_EXEC", "ET_DYN") or not loads or elf["e_entry"] >= arch.max_addr:
        raise ELFError("not a program")
    for load in loads:
        if load["p_filesz"] > load["p_memsz"] or load["p_vaddr"] + load["p_memsz"] > arch.max_addr:
            raise ELFError("a segment that is nowhere in user space")
        if load["p_offset"] % arch.page_size != load["p_vaddr"] % arch.page_size:
            raise ELFError("a segment that is not on the pages of its file")
    return elf


def map_image(space: AddressSpace, file: BinaryIO, elf: Any, base: int) -> Image:
    """Map the segments of a file: where they say (ET_EXEC), near ``base``, or where there is room if that is 0."""
    arch = space.arch
    loads = list(elf.iter_segments("PT_LOAD"))
    low = arch.page_round_down(loads[0]["p_vaddr"])
    high = max(arch.page_round_up(load["p_vaddr"] + load["p_memsz"]) for load in loads)
    fixed = arch.map_flags.fixed_noreplace if elf["e_type"] == "ET_EXEC" or base else 0
    where = low if elf["e_type"] == "ET_EXEC" else base & -max(arch.page_size, *(load["p_align"] for load in loads))
    flags = mman.MAP_PRIVATE | arch.map_flags.anonymous | fixed
    start = space.mmap(where, high - low, mman.PROT_NONE, flags)  # all of it is free there
    space.munmap(start, high - low)  # and what is between the segments stays free
    bias = start - low
    for load in loads:
        map_segment(space, file, load, bias)
    return Image(bias, bias + elf["e_entry"], bias + _headers(loads, elf["e_phoff"]), bias + _end(loads))


def map_segment(space: AddressSpace, file: BinaryIO, load: Any, bias: int) -> None:
    """Map the pages of the file that a segment has, and zeros behind them: its bss."""
    arch = space.arch
    addr, prot = bias + load["p_vaddr"], rights(load["p_flags"])
    start = arch.page_round_down(addr)
    filled = start
    if load["p_filesz"]:
        end = addr + load["p_filesz"]
        filled = arch.page_round_up(end)
        flags = mman.MAP_PRIVATE | arch.map_flags.fixed
        space.mmap(start, filled - start, prot, flags, file.fileno(), load["p_offset"] - (addr - start))
        if load["p_memsz"] > load["p_filesz"] and prot & mman.PROT_WRITE:
            space.zero_out(end, filled - end)
    bss = arch.page_round_up(addr + load["p_memsz"])
    if bss > filled and load["p_memsz"] > load["p_filesz"]:
        prot = mman.PROT_READ | mman.PROT_WRITE | prot & mman.PROT_EXEC
        space.mmap(filled, bss - filled, prot, mman.MAP_PRIVATE | arch.map_flags.anonymous | arch.map_flags.fixed)


def rights(p_flags: int) -> int:
    """The rights of a mapping by those of a segment."""
    return sum(prot for flag, prot in _RIGHTS if p_flags & flag)


def _end(loads: Iterable[Any]) -> int:
    return max(int(load["p_vaddr"] + load["p_memsz"]) for load in loads)


def _headers(loads: Iterable[Any], offset: int) -> int:
    """Where the program headers are in memory: in the segment that has them in the file; 0 if none has."""
    for load in loads:
        if load["p_offset"] <= offset < load["p_offset"] + load["p_filesz"]:
            return int(load["p_vaddr"] - load["p_offset"] + offset)
    return 0
