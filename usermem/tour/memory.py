"""The tour's stages in memory, files and pipes: readv, open, execve, a lock, writev.

Each is a function over the guest, so that it can be read, and tested, by itself.
"""

from __future__ import annotations

import hashlib
import os
import threading
from functools import partial
from pathlib import Path

from safemem import FDReader, FDWriter, atomics
from usermem.cstruct import copy_pointer_out, copy_uint32_in, copy_uint32_out
from usermem.errors import FaultError, linux_result
from usermem.hexdump import hexdump
from usermem.io_sequence import IOSequence
from usermem.iovec import copy_in_vector, copy_out_iovecs, iovecs_io_sequence
from usermem.strings import copy_string_in
from usermem.terminal import Progress
from usermem.tour.guest import PAGE, Guest, Say

_TAKES = 2000


def read_file(guest: Guest, file: Path, say: Say) -> None:
    """readv(2) into the guest's buffers: a partial count at the hole, EFAULT on it, then the rest."""
    space = guest.space
    table = guest.scratch
    copy_out_iovecs(space, table, guest.buffers)
    say(f"2. readv(fd, iov={table:#x}, iovcnt=3): the guest's table is {guest.buffers}\n")
    rest = iovecs_io_sequence(space, table, 3)
    with file.open("rb", buffering=0) as source:
        reader = FDReader(source.fileno())
        while rest.num_bytes:
            try:
                n = rest.copy_out_from(reader)
            except FaultError as fault:
                n = fault.transferred
                say(f"   {fault}")
                if not n:
                    say(f"   readv returns {linux_result(fault)}, which is -EFAULT, and the guest gets no signal;")
                    say(f"   a store by its own code there would be {fault.signo.name}, si_code {fault.si_code}")
                    say(f"   the guest maps the page at {guest.hole:#x}, and goes on\n")
                    guest.fill_hole()
                else:
                    say(f"   readv returns {n}, a partial count: only the next call returns the error")
                    say(f"   memory there ({fault.address:#x} is the first byte missing):\n")
                    say(hexdump(space, fault.address - 32, 48))
            else:
                say(f"   readv returns {n}")
                if not n:
                    break
            rest = rest.drop_first(n)


def read_path(guest: Guest, file: Path, say: Say) -> None:
    """A path whose NUL is the last byte before unmapped memory, as open(2) reads it; and one whose NUL is missing."""
    path = os.fsencode(file.name)
    addr = guest.stack_end - len(path) - 1
    guest.space.copy_out(addr, path + b"\0")
    say(f"\n3. open({addr:#x}): a path that ends with the stack")
    say(f"   {copy_string_in(guest.space, addr, 4096)!r}")
    guest.space.copy_out(guest.stack_end - 1, b"!")
    try:
        copy_string_in(guest.space, addr, 4096)
    except FaultError as fault:
        say(f"   without its NUL: {linux_result(fault)}, {fault}")


def read_argv(guest: Guest, file: Path, say: Say) -> None:
    """A NULL-terminated vector of strings on the stack, as execve(2) reads it."""
    at = guest.scratch + 1024
    table = guest.scratch + 512
    for word in (b"cat", b"--", os.fsencode(file.name)):
        guest.space.copy_out(at, word + b"\0")
        table += copy_pointer_out(guest.space, table, at)
        at += len(word) + 1
    copy_pointer_out(guest.space, table, 0)
    argv = copy_in_vector(guest.space, guest.scratch + 512, 32 * PAGE, 2 << 20)
    say(f"\n4. execve(argv={guest.scratch + 512:#x})\n   {argv}")


def count_under_lock(guest: Guest, say: Say) -> bool:
    """Two threads take a lock in guest memory by compare-and-swap, and count under it with plain copies.

    Returns whether no count was lost.
    """
    space, lock = guest.space, guest.scratch + 256
    counter = lock + 64

    def take_turns() -> None:
        for _ in range(_TAKES):
            while space.compare_and_swap_uint32(lock, 0, 1):
                pass
            copy_uint32_out(space, counter, copy_uint32_in(space, counter) + 1)
            space.swap_uint32(lock, 0)

    threads = [threading.Thread(target=take_turns) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    count = copy_uint32_in(space, counter)
    say(f"\n5. A lock at {lock:#x}, by compare-and-swap: two threads, {_TAKES} turns each ({atomics.tier()} atomics)")
    say(f"   the count under the lock is {count}{'' if count == 2 * _TAKES else ', WRONG'}")
    return count == 2 * _TAKES


def _write_all(srcs: IOSequence, writer: FDWriter) -> int:
    """Write all of it, and return how many calls that took."""
    calls = 0
    while srcs.num_bytes:
        srcs = srcs.drop_first(srcs.copy_in_to(writer))
        calls += 1
    return calls


def write_to_pipe(guest: Guest, say: Say) -> str:
    """writev(2) of the guest's buffers to a pipe, and the SHA-256 of what comes out at its other end."""
    outlet, inlet = os.pipe()
    digest = hashlib.sha256()

    def drain() -> None:
        done = 0
        with os.fdopen(outlet, "rb", buffering=0) as pipe, Progress("writev(pipe)", guest.size) as show:
            for data in iter(partial(pipe.read, 1 << 16), b""):
                digest.update(data)
                done += len(data)
                show(done)

    drainer = threading.Thread(target=drain)
    drainer.start()
    try:
        calls = _write_all(iovecs_io_sequence(guest.space, guest.scratch, 3), FDWriter(inlet))
    finally:
        os.close(inlet)
        drainer.join()
    many = f"{calls} call{'s' * (calls != 1)}"
    runs = len(guest.space.blocks(guest.buffers))
    say(f"\n6. writev(pipe): {guest.size} bytes in {many}, out of {runs} runs of host memory")
    return digest.hexdigest()
