"""The arguments that a program was started with, from the memory of its process.

The kernel puts argc, argv, envp and the auxiliary vector on the new stack, one behind the other. /proc/PID/auxv and a
core's NT_AUXV tell the last, of which AT_RANDOM points closely behind it: the stack is searched for it from there, and
read backwards. Source: Linux fs/binfmt_elf.c (create_elf_tables).
"""

from __future__ import annotations

import errno
from typing import Final

from safemem.errors import error
from usermem.errors import FaultError
from usermem.iovec import copy_in_vector
from usermem.memory_io import IO, arch_of, read_bytes

_AT_RANDOM: Final = 25
_BEHIND: Final = 1 << 16  # bytes between the vector and what AT_RANDOM points to, at most
_POINTERS: Final = 1 << 20  # bytes of argv and envp, at most
_PAGE: Final = 4096
_MAX_STRING: Final = 32 * 4096  # MAX_ARG_STRLEN
_MAX_TOTAL: Final = 6 << 20  # three quarters of 8 MiB of stack


def program_arguments(io: IO, auxv: bytes) -> list[bytes]:
    """The argv of the program whose auxiliary vector is ``auxv``. It may have changed the strings since.

    Raises OSError (ENOENT) if the stack does not show it, and as copy_in_vector.
    """
    arch = arch_of(io)
    pointer = arch.pointer
    most = min(len(auxv), _BEHIND)  # a core may have made up any
    words = [word for (word,) in pointer.iter_unpack(auxv[: most - most % pointer.size])]
    random = dict(zip(words[::2], words[1::2], strict=False)).get(_AT_RANDOM, 0)
    behind = _before(io, random, _BEHIND)
    at = behind.rfind(auxv) if random else -1
    if at < 0:
        raise _unknown()
    start = random - len(behind) + at
    table = _before(io, start, _POINTERS)
    words = [word for (word,) in pointer.iter_unpack(table[len(table) % pointer.size :])]
    end_of_envp = len(words) - 1
    index = end_of_envp - 1
    while index >= 0 and words[index]:
        index -= 1
    end_of_argv = index
    while index > 0 and words[index - 1] != end_of_argv - index:  # argc, which is no pointer
        index -= 1
    if index <= 0 or words[end_of_envp]:
        raise _unknown()
    return copy_in_vector(io, start - (len(words) - index) * pointer.size, _MAX_STRING, _MAX_TOTAL)


def _unknown() -> OSError:
    return error(errno.ENOENT, "the arguments are not where the program was given them")


def _before(io: IO, addr: int, most: int) -> bytes:
    """The bytes that can be read before addr, some pages at most."""
    pages: list[bytes] = []
    end = addr
    while addr - end < most and end > 0:
        start = (end - 1) // _PAGE * _PAGE
        try:
            pages.append(read_bytes(io, start, end - start))
        except FaultError:
            break
        end = start
    return b"".join(reversed(pages))
