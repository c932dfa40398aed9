"""A guest that passes anything: registers of any value, structures of any bytes. 1,000,000 calls by night.

Each call is answered as a system call is: by a result, or an OSError that linux_result makes -errno of. Nothing else is
raised, the tables stay whole, and the process lives.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from campaign import times
from hostarch import AMD64, ARM64, I386, S390X, Arch, mman
from safemem.datagram import datagram_pair
from usermem import (
    AddressSpace,
    SharedMemory,
    copy_in_vector,
    copy_int32_strings_in_vec,
    copy_string_in,
    copy_uint64_out,
    iovecs_io_sequence,
    linux_result,
    pread_fd,
    pwrite_fd,
    read_fd,
    readv_fd,
    single_io_sequence,
    write_fd,
    writev_fd,
)
from usermem.messages import recvmmsg_into_user, recvmsg_into_user, sendmmsg_from_user, sendmsg_from_user

RW = mman.PROT_READ | mman.PROT_WRITE
BASE = 0x10_0000
PAGES = 16
CALLS = times(1_000, 250_000)
ARCHES = {"amd64": AMD64, "i386": I386, "arm64": ARM64, "s390x": S390X}


class Guest:
    """One that has nothing to lose."""

    def __init__(self, arch: Arch, seed: int) -> None:
        self.rng = random.Random(seed)
        self.arch = arch
        self.page = arch.page_size
        self.space = AddressSpace(arch)
        self.space.limits.max_map_count = 300
        self.anonymous = arch.map_flags.anonymous | mman.MAP_PRIVATE
        self.space.mmap(BASE, PAGES * self.page, RW, self.anonymous | mman.MAP_FIXED)
        self.space.set_brk(BASE << 4)
        self.ends = datagram_pair()
        self.shared = SharedMemory(4 * self.page)
        self.zero = os.open("/dev/zero", os.O_RDWR)
        self.null = os.open(os.devnull, os.O_RDWR)
        self.calls = self._calls()

    def close(self) -> None:
        """Give everything back."""
        self.space.close()
        for end in self.ends:
            end.close()
        os.close(self.zero)
        os.close(self.null)

    def address(self) -> int:
        """Of memory most often, or near an edge, or any."""
        rng, top = self.rng, self.arch.max_addr
        inside = BASE + rng.randrange(PAGES * self.page)
        edge = rng.choice(
            (0, BASE, BASE + PAGES * self.page, top, 1 << 31, 1 << 32, 1 << 47, 1 << 63, 1 << 64, BASE << 4)
        )
        near = edge + rng.choice((-self.page, -8, -1, 0, 1, 8, self.page))
        value = rng.choice((inside, inside & -self.page, inside & -self.page, near, rng.getrandbits(64)))
        return value % (1 << 8 * self.arch.pointer_size)

    def length(self) -> int:
        """Small, a page or so, or any."""
        rng = self.rng
        few = rng.choice((0, 1, 8, 100, self.page - 1, self.page, 3 * self.page))
        value = rng.choice((few, few, few, rng.getrandbits(20), -1, 1 << 31, 1 << 63, rng.getrandbits(64)))
        return value % (1 << 8 * self.arch.pointer_size)

    def flags(self) -> int:
        """Some bits, none, all."""
        rng = self.rng
        return rng.choice((0, 1, 2, 3, 7, rng.getrandbits(4), rng.getrandbits(16), rng.getrandbits(32), (1 << 32) - 1))

    def fd(self) -> int:
        """A descriptor that exists, or a register that is none."""
        return self.rng.choice(
            (self.zero, self.null, (1 << 32) - 1, -1, 1 << 20, 1 << 31, self.rng.getrandbits(64) | 1 << 40)
        )

    def scribble(self) -> None:
        """Change some of memory: any bytes, addresses, lengths."""
        for _ in range(4):
            value = self.rng.choice((self.address, self.length, self.flags))()
            at = BASE + self.rng.randrange(0, PAGES * self.page - 8, 8)
            data = value.to_bytes(8, self.arch.byte_order)
            linux(partial(self.space.copy_out, at, data, ignore_permissions=True))

    def _calls(self) -> list[Callable[[], object]]:
        space, a, n, f, (here, there) = self.space, self.address, self.length, self.flags, self.ends
        fixed = mman.MAP_FIXED | self.anonymous

        def mmap() -> None:
            length, flags = n(), f()
            if self.rng.random() < 0.5:
                flags = self.anonymous | self.rng.choice((0, mman.MAP_FIXED, mman.MAP_GROWSDOWN, mman.MAP_NORESERVE))
            space.mmap(a(), length, f(), flags, self.fd(), self.rng.choice((0, length, self.page)))

        def again() -> None:
            space.mmap(BASE + self.page * self.rng.randrange(PAGES), self.page, RW, fixed)

        def shared() -> None:
            space.map_object(a(), n(), RW, mman.MAP_SHARED | self.rng.choice((0, mman.MAP_FIXED)), self.shared)

        def strings() -> None:
            copy_int32_strings_in_vec(space, iovecs_io_sequence(space, a(), 3).addrs.take_first(1 << 12), 5)

        return [
            mmap,
            again,
            again,
            shared,
            lambda: space.munmap(a(), n()),
            lambda: space.mprotect(a(), n(), f()),
            lambda: space.mremap(a(), n(), n(), f(), a()),
            lambda: space.brk(a()),
            lambda: space.madvise(a(), n(), self.rng.choice((f(), self.rng.randrange(26), 100, 102, 103))),
            lambda: space.msync(a(), n(), f()),
            lambda: space.mincore(a(), n() % (1 << 24)),
            lambda: space.mlock(a(), n(), f()),
            lambda: space.munlock(a(), n()),
            lambda: space.mlockall(f()),
            space.munlockall,
            lambda: copy_string_in(space, a(), n() % (1 << 20)),
            lambda: copy_in_vector(space, a(), 32 * self.page, 1 << 21),
            strings,
            lambda: copy_uint64_out(space, a(), n()),
            lambda: single_io_sequence(space, a(), n()),
            lambda: iovecs_io_sequence(space, a(), n()),
            lambda: read_fd(space, self.fd(), a(), n() % (1 << 24)),
            lambda: write_fd(space, self.fd(), a(), n() % (1 << 24)),
            lambda: pread_fd(space, self.fd(), a(), n() % (1 << 20), n()),
            lambda: pwrite_fd(space, self.fd(), a(), n() % (1 << 20), n()),
            lambda: readv_fd(space, self.fd(), a(), self.rng.choice((0, 1, 3, 1024, 1025, n()))),
            lambda: writev_fd(space, self.fd(), a(), self.rng.choice((0, 1, 3, 1024, 1025, n()))),
            lambda: sendmsg_from_user(space, here, a(), f()),
            lambda: recvmsg_into_user(space, there, a(), f() | 0x40),
            lambda: sendmmsg_from_user(space, here, a(), self.rng.choice((1, 3, n() % 5000)), f()),
            lambda: recvmmsg_into_user(space, there, a(), self.rng.choice((1, 3, n() % 5000)), f() | 0x40),
            lambda: space.compare_and_swap_uint32(a(), f(), f() % (1 << 32)),
            lambda: space.load_uint64(a()),
        ]

    def one(self) -> None:
        """One call, and then and now other bytes in memory."""
        linux(self.rng.choice(self.calls))
        if self.rng.random() < 0.2:
            self.scribble()


def linux(call: Callable[[], Any]) -> None:
    """As a system call answers."""
    try:
        call()
    except OSError as exc:
        assert linux_result(exc) > -4096


@pytest.mark.parametrize("arch", ARCHES)
def test_a_hostile_guest(arch: str) -> None:
    """Whatever it passes."""
    rounds = times(2, 100)  # a guest that has used up its mappings and limits has little left to do
    for seed in range(rounds):
        guest = Guest(ARCHES[arch], seed)
        try:
            for _ in range(CALLS // rounds):
                guest.one()
            guest.space._check()
        finally:
            guest.close()
