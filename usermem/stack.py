"""build_stack: what execve(2) leaves on the stack of a new program.

From the top down, as Linux has it::

    top           a zero pointer
                  the file's name (AT_EXECFN)        strings, each with its NUL
    env_start     the environment, in order
    arg_start     the arguments, in order
                  AT_PLATFORM, AT_BASE_PLATFORM      strings
                  AT_RANDOM                          16 bytes, at any alignment
    auxv          pairs of words, AT_NULL at the end
    envp          pointers, NULL at the end
    argv          pointers, NULL at the end
    pointer       argc, a word; a multiple of 16

Words have the guest's width and byte order.

Source: Linux fs/binfmt_elf.c (create_elf_tables), fs/exec.c (bprm_stack_limits, copy_strings, setup_arg_pages),
arch/*/kernel/process.c (arch_align_stack).
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Final

from attrs import frozen

from hostarch import AddrRangeSeq, Arch, auxvec, mman
from safemem import Block, BlockSeq, copy_seq
from safemem.buffers import check_int
from safemem.errors import error
from usermem.address_space import AddressSpace
from usermem.memory_io import IO, arch_of
from usermem.mm.limits import STACK_LIMIT

ARG_MAX: Final = 131_072
"""How many bytes of strings and pointers Linux takes however short the stack may be."""

MAX_ARG_PAGES: Final = 32
"""How many pages one string may have, with its NUL: MAX_ARG_STRLEN."""

_MOST: Final = 6 << 20  # three quarters of _STK_LIM, whatever the limit
_SPARE: Final = 131_072  # how far below the strings Linux maps the stack from the start
_STRING_ALIGN: Final = {"mips": 8, "mipsel": 8, "riscv64": 1}  # arch_align_stack(); 16 elsewhere
_NAMES: Final = (auxvec.AT_PLATFORM, auxvec.AT_BASE_PLATFORM)

String = str | bytes
Auxv = Iterable[tuple[int, int | String]]


@frozen
class Stack:
    """Where the stack of a new program has what, in addresses.

    ``pointer`` is the stack pointer at the program's entry, where argc is. ``argv``, ``envp`` and ``auxv`` are the
    tables. The argument strings are in [arg_start, env_start), the environment in [env_start, env_end), as
    proc_pid_stat(5) has them. ``top`` is the first address behind all.
    """

    pointer: int
    argv: int
    envp: int
    auxv: int
    arg_start: int
    env_start: int
    env_end: int
    top: int


def build_stack(
    space: IO,
    argv: Sequence[String],
    envp: Sequence[String],
    auxv: Auxv,
    *,
    top: int | None = None,
    prot: int = mman.PROT_READ | mman.PROT_WRITE,
) -> Stack:
    """Lay out arguments, environment and auxiliary vector as execve(2) does, and return where they are.

    ``auxv`` are (type, value); AT_NULL is added. The value of AT_EXECFN, AT_PLATFORM, AT_BASE_PLATFORM and AT_RANDOM
    (16 bytes) may be bytes, or a string: it is put on the stack, and the entry points there. A str is encoded as file
    names are. Without arguments there is one, which is empty, as since Linux 5.18.

    Without ``top`` the stack is a new mapping at the end of user space that grows down (MAP_GROWSDOWN), with the rights
    ``prot``, and as long as Linux makes it: the strings and 128 KiB. Else the stack ends at ``top``, in memory that is
    mapped. Linux draws some bytes between strings and tables, and the end of the stack, at random; here there are none.

    Raises OSError: E2BIG where execve does, for a string of more than 32 pages, more strings and pointers than a
    quarter of the stack's limit, or 6 MiB, or a stack that is longer than the limit may be (for whose tables Linux
    kills the program); as mmap if there is no room. FaultError if the memory at ``top`` is not all writable. ValueError
    for a NUL in a string and a bad entry, OverflowError for a value that is no word, TypeError if ``space`` is no
    AddressSpace and there is no ``top``. Then nothing has changed.
    """
    arch = arch_of(space)
    limit = space.limits.stack_limit if isinstance(space, AddressSpace) else STACK_LIMIT
    found = _Layout(arch, argv, envp, auxv)
    found.check_limits(limit)
    if top is not None:
        stack, data = found.place(check_int(top, "top"))
        _write_whole(space, stack.pointer, data)
        return stack
    if not isinstance(space, AddressSpace):
        raise TypeError(f"top is needed: {type(space).__name__} has no mmap")
    stack, data = found.place(arch.page_round_down(arch.max_addr))
    start = _start_of_mapping(arch, stack, limit)
    flags = mman.MAP_PRIVATE | arch.map_flags.anonymous | arch.map_flags.growsdown | arch.map_flags.fixed_noreplace
    free = not _is_mapped(space, start, stack.top)
    try:  # an interrupt may come before it is known that there is a mapping
        space.map_object(start, stack.top - start, prot, flags, None, name="[stack]")
        space.copy_out(stack.pointer, data, ignore_permissions=True)
    except FileExistsError:
        raise
    except BaseException:
        if free and _is_mapped(space, start, stack.top):
            space.munmap(start, stack.top - start)
        raise
    return stack


def _is_mapped(space: AddressSpace, start: int, end: int) -> bool:
    return any(vma.start < end and start < vma.end for vma in space.mappings())


def _start_of_mapping(arch: Arch, stack: Stack, limit: int) -> int:
    """Where the mapping of a stack begins: setup_arg_pages(), and expand_stack() for the tables. Raises E2BIG."""
    lowest = stack.top - arch.page_round_down(limit)
    strings = arch.page_round_down(stack.arg_start)
    tables = arch.page_round_down(stack.pointer)
    if min(strings, tables) < lowest:
        raise error(errno.E2BIG, f"the stack needs {stack.top - stack.pointer:#x} bytes, and may have {limit:#x}")
    return min(max(strings - _SPARE, lowest), tables)


class _Layout:
    """What goes on a stack, before it is known where that is."""

    def __init__(self, arch: Arch, argv: Sequence[String], envp: Sequence[String], auxv: Auxv) -> None:
        self.arch = arch
        self.argv = [_terminated(string) for string in argv] or [b"\0"]
        self.envp = [_terminated(string) for string in envp]
        self.auxv = [
            (
                check_int(kind, "a type in auxv"),
                value if isinstance(value, str | bytes) else check_int(value, "its value"),
            )
            for kind, value in auxv
        ]
        self.named: dict[int, bytes] = {}
        for kind, value in self.auxv:
            if isinstance(value, str | bytes):
                self.named[kind] = self._named(kind, value)
        self.execfn = self.named.pop(auxvec.AT_EXECFN, b"")

    def _named(self, kind: int, value: String) -> bytes:
        if kind in self.named:
            raise ValueError(f"auxv must have one string of type {kind}")
        if kind == auxvec.AT_RANDOM:
            if not isinstance(value, bytes) or len(value) != 16:
                raise ValueError(f"AT_RANDOM must be 16 bytes or an address, not {value!r}")
            return value
        if kind not in (*_NAMES, auxvec.AT_EXECFN):
            raise ValueError(f"the value of auxv's type {kind} must be an int, not {value!r}")
        return _terminated(value)

    def check_limits(self, stack_limit: int) -> None:
        """bprm_stack_limits(), valid_arg_len(). Raises OSError (E2BIG)."""
        longest = MAX_ARG_PAGES * self.arch.page_size
        limit = max(min(_MOST, stack_limit // 4), ARG_MAX)
        size = self.arch.pointer_size * (len(self.argv) + len(self.envp))
        if size >= limit:
            raise error(errno.E2BIG, f"{len(self.argv)} arguments and {len(self.envp)} variables")
        for string in (self.execfn, *self.envp, *self.argv):
            size += len(string)
            if len(string) > longest:
                raise error(errno.E2BIG, f"a string of {len(string)} bytes, more than {longest}")
        if size > limit:
            raise error(errno.E2BIG, f"{size} bytes of strings and pointers, more than {limit}")

    def place(self, top: int) -> tuple[Stack, bytes]:
        """The stack that ends at ``top``, and the bytes from its pointer on."""
        word = self.arch.pointer_size
        args, env = b"".join(self.argv), b"".join(self.envp)
        strings = args + env + self.execfn + bytes(word)
        arg_start = top - len(strings)
        low = arg_start & -_STRING_ALIGN.get(self.arch.family, 16)
        addresses = {auxvec.AT_EXECFN: top - word - len(self.execfn)}
        data = bytes(arg_start - low) + strings
        for kind in (*_NAMES, auxvec.AT_RANDOM):
            if kind in self.named:
                low -= len(self.named[kind])
                addresses[kind] = low
                data = self.named[kind] + data
        mask = self.arch.addr_mask
        pairs: list[int] = []
        for kind, value in self.auxv:
            pairs += (kind, addresses[kind] & mask if isinstance(value, str | bytes) else value)
        pairs += (auxvec.AT_NULL, 0)
        count = len(self.argv) + len(self.envp) + 3
        pointer = low - word * (len(pairs) + count) & -16
        argv = pointer + word
        envp = argv + word * (len(self.argv) + 1)
        vector = pointer + word * count
        env_start = arg_start + len(args)
        words = [len(self.argv), *_starts(arg_start, self.argv), 0, *_starts(env_start, self.envp), 0]
        table = self._packed([word & mask for word in words] + pairs)
        stack = Stack(pointer, argv, envp, vector, arg_start, env_start, env_start + len(env), top)
        return stack, table.ljust(low - pointer, b"\0") + data

    def _packed(self, words: list[int]) -> bytes:
        """The words as the guest has them. Raises OverflowError."""
        sign = "<" if self.arch.byte_order == "little" else ">"
        try:
            return struct.pack(f"{sign}{len(words)}{'Q' if self.arch.pointer_size == 8 else 'I'}", *words)
        except struct.error:
            bad = [word for word in words if not 0 <= word <= self.arch.addr_mask]
            raise OverflowError(f"{bad} do not fit words of {self.arch.pointer_size} bytes") from None


def _terminated(string: String) -> bytes:
    encoded = os.fsencode(string)
    if b"\0" in encoded:
        raise ValueError(f"a string must have no NUL: {string!r}")
    return encoded + b"\0"


def _starts(start: int, strings: Sequence[bytes]) -> list[int]:
    """Where each string begins, the first at ``start``."""
    return list(accumulate(map(len, strings), initial=start))[:-1]


class _Whole:
    """A Reader that fills its blocks if all of ``data`` finds room there, and else nothing."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.room = 0

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        self.room = dsts.num_bytes
        return copy_seq(dsts, BlockSeq.of(Block(self.data))) if self.room == len(self.data) else 0


def _write_whole(io: IO, addr: int, data: bytes) -> None:
    """Store all of data at addr. Raises FaultError, and has stored nothing then."""
    ranges = AddrRangeSeq.from_pairs([addr, len(data)])
    while True:
        whole = _Whole(data)
        if io.copy_out_from(ranges, whole) == len(data):
            return
        io.copy_out_from(ranges.drop_first(whole.room), _Whole(b""))  # which raises the fault
