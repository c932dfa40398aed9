"""Linux's structs: what the running kernel writes is read, and what is written it reads; the layouts of headers.

The kernel's own answers serve for this machine. For all, the figures in abi_figures.txt do, which each machine's C
compiler gave for its kernel's headers (:mod:`abi_figures`).
"""

from __future__ import annotations

import ctypes
import os
import platform
import select
import shutil
import socket
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from abi_figures import COMPILERS, STRUCTS, Figures, kept, measured
from hostarch import AMD64, ARM, ARM64, ARM64_16K, I386, MIPS, MIPSEL, PPC64, RISCV64, S390X, Arch
from patchy_io import PatchyIO
from usermem import BytesIO, FaultError, abi, copy_out_iovecs
from usermem.abi import ABIStruct

HERE = {"x86_64": AMD64, "aarch64": ARM64, "riscv64": RISCV64}.get(platform.machine())
with_kernel = pytest.mark.skipif(
    HERE is None or platform.system() != "Linux", reason="needs a Linux kernel whose structs are known here"
)
PPC64LE = evolve(PPC64, name="ppc64le", byte_order="little")
ARCHES = [AMD64, I386, ARM, ARM64, ARM64_16K, RISCV64, MIPS, MIPSEL, PPC64, PPC64LE, S390X]
KEPT = kept()


@pytest.fixture(scope="module")
def libc() -> ctypes.CDLL:
    """The C library, for its system calls."""
    return ctypes.CDLL(None, use_errno=True)


def arch_here() -> Arch:
    """The machine that runs this."""
    assert HERE is not None
    return HERE


def filled(layout: ABIStruct[Any], call: Any, *args: object) -> Any:
    """What a call writes into a struct, whose last argument it is. Not a byte behind it is written."""
    size = layout.size(arch_here())
    buffer = ctypes.create_string_buffer(b"\xee" * (size + 64), size + 64)
    assert call(*args, buffer) == 0
    assert buffer.raw[size:] == b"\xee" * 64
    return layout.copy_in(BytesIO(buffer.raw, arch_here()), 0)


@with_kernel
def test_stat(libc: ctypes.CDLL, tmp_path: Path) -> None:
    """fstat(2) of a file of every kind, by os.stat."""
    number = {"amd64": 5}.get(arch_here().name, 80)
    path = tmp_path / "file"
    path.write_bytes(b"x" * 5000)
    os.utime(path, ns=(1_000_000_007, 1_700_000_000_123_456_789))
    for name in (path, "/dev/null", tmp_path):
        fd = os.open(name, os.O_RDONLY)
        found = filled(abi.STAT, lambda buffer, fd=fd: libc.syscall(number, fd, buffer))
        known = os.fstat(fd)
        os.close(fd)
        for field in abi.Stat._fields:
            if not field.endswith(("time", "nsec")):
                assert getattr(found, field) == getattr(known, field), field
        for which in ("atime", "mtime", "ctime"):
            both = getattr(found, f"st_{which}"), getattr(found, f"st_{which}_nsec")
            assert both == divmod(getattr(known, f"st_{which}_ns"), 10**9)


@with_kernel
def test_times_and_limits(libc: ctypes.CDLL) -> None:
    """clock_gettime, gettimeofday, getrlimit and prlimit64 fill theirs."""
    import resource

    before = time.time_ns()
    spec = filled(abi.TIMESPEC, libc.clock_gettime, 0)
    value = filled(abi.TIMEVAL, lambda buffer: libc.gettimeofday(buffer, None))
    after = time.time_ns()
    assert before <= spec.tv_sec * 10**9 + spec.tv_nsec <= after
    assert before // 1000 <= value.tv_sec * 10**6 + value.tv_usec <= after // 1000
    assert abi.KERNEL_TIMESPEC.size(arch_here()) == abi.TIMESPEC.size(arch_here())
    for which in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE, resource.RLIMIT_STACK):
        known = tuple(limit % (1 << 64) for limit in resource.getrlimit(which))
        assert filled(abi.RLIMIT, libc.getrlimit, which) == known
        assert filled(abi.RLIMIT64, libc.prlimit64, 0, which, None) == known


@with_kernel
def test_uname(libc: ctypes.CDLL) -> None:
    """uname(2)."""
    found = filled(abi.UTSNAME, libc.uname)
    names = [field.partition(b"\0")[0].decode() for field in found]
    assert names[:5] == list(os.uname())
    assert {len(field) for field in found} == {65}


@with_kernel
def test_epoll_events(libc: ctypes.CDLL) -> None:
    """epoll_wait gives back what epoll_ctl was given, two in a row."""
    arch, data = arch_here(), [0x0102030405060708, (1 << 64) - 2]
    poll = select.epoll()
    pipes = [os.pipe() for _ in data]
    for (_, writer), each in zip(pipes, data, strict=True):
        event = abi.EPOLL_EVENT.pack(arch, abi.EpollEvent(select.EPOLLOUT, each))
        assert libc.epoll_ctl(poll.fileno(), 1, writer, event) == 0
    size = abi.EPOLL_EVENT.size(arch)
    buffer = ctypes.create_string_buffer(2 * size)
    assert libc.epoll_wait(poll.fileno(), buffer, 2, 0) == 2
    found = [abi.EPOLL_EVENT.copy_in(BytesIO(buffer.raw, arch), at) for at in (0, size)]
    assert sorted(event.data for event in found) == sorted(data)
    assert {event.events for event in found} == {select.EPOLLOUT}
    poll.close()
    for fd in [end for pipe in pipes for end in pipe]:
        os.close(fd)


@with_kernel
def test_sigaction(libc: ctypes.CDLL) -> None:
    """rt_sigaction gives back what it was given: the handler, flags, the restorer where there is one, and the mask."""
    arch = arch_here()
    number, signal = {"amd64": 13}.get(arch.name, 134), 40
    restart = 0x1000_0000
    given = abi.Sigaction(sa_handler=1, sa_flags=restart, sa_mask=1 << 63 | 1 << 9)
    packed = abi.SIGACTION.pack(arch, given)
    before = ctypes.create_string_buffer(len(packed))
    assert libc.syscall(number, signal, packed, before, 8) == 0
    found = filled(abi.SIGACTION, lambda buffer: libc.syscall(number, signal, before.raw, buffer, 8))
    assert found._replace(sa_restorer=0) == given


@with_kernel
def test_socket_addresses_and_iovecs(libc: ctypes.CDLL) -> None:
    """getsockname fills what bind was given; writev takes a table of iovecs."""
    arch = arch_here()
    with socket.socket() as bound:
        address = abi.SOCKADDR_IN.pack(arch, abi.SockaddrIn(socket.AF_INET, 0, b"\x7f\0\0\1"))
        assert libc.bind(bound.fileno(), address, len(address)) == 0
        size = ctypes.c_uint32(len(address))
        found = filled(abi.SOCKADDR_IN, lambda b: libc.getsockname(bound.fileno(), b, ctypes.byref(size)))
        assert found == (socket.AF_INET, bound.getsockname()[1], b"\x7f\0\0\1")
        assert size.value == abi.SOCKADDR_IN.size(arch) == 16
    with socket.socket(socket.AF_UNIX) as bound:
        name = b"\0usermem-%d" % os.getpid()
        address = abi.SOCKADDR_UN.pack(arch, abi.SockaddrUn(socket.AF_UNIX, name))
        assert len(address) == 110
        assert libc.bind(bound.fileno(), address, 2 + len(name)) == 0
        assert bound.getsockname() == name
        found = abi.SOCKADDR_UN.copy_in(BytesIO(address[: 2 + len(name)], arch), 0, size=2 + len(name))
        assert found == (socket.AF_UNIX, name.ljust(108, b"\0"))
    reader, writer = os.pipe()
    parts = [ctypes.create_string_buffer(b"one"), ctypes.create_string_buffer(b"three")]
    table = b"".join(abi.IOVEC.pack(arch, abi.Iovec(ctypes.addressof(part), len(part.value))) for part in parts)
    assert libc.writev(writer, table, 2) == 8
    assert os.read(reader, 99) == b"onethree"
    os.close(reader)
    os.close(writer)


@with_kernel
def test_ipv6_addresses(libc: ctypes.CDLL) -> None:
    """sockaddr_in6, with a flow and a scope."""
    arch = arch_here()
    try:
        bound = socket.socket(socket.AF_INET6)
    except OSError as exc:
        pytest.skip(f"no IPv6: {exc}")
    with bound:
        loopback = bytes(15) + b"\1"
        address = abi.SOCKADDR_IN6.pack(arch, abi.SockaddrIn6(socket.AF_INET6, 0, 0, loopback))
        if libc.bind(bound.fileno(), address, len(address)):
            pytest.skip("no IPv6 loopback")
        size = ctypes.c_uint32(len(address))
        found = filled(abi.SOCKADDR_IN6, lambda b: libc.getsockname(bound.fileno(), b, ctypes.byref(size)))
        assert found == (socket.AF_INET6, bound.getsockname()[1], 0, loopback, 0)
    packed = abi.SOCKADDR_IN6.pack(arch, abi.SockaddrIn6(10, 80, 0x12345, loopback, 7))
    assert packed == struct.pack("=H", 10) + struct.pack(">HI", 80, 0x12345) + loopback + struct.pack("=I", 7)


def places(layout: ABIStruct[Any], arch: Arch) -> Figures:
    """The layout's size, and where each field is, how long, and whether it is signed, found out by setting its bits."""
    size = layout.size(arch)
    zeros, ones = layout.unpack(arch, bytes(size)), layout.unpack(arch, b"\xff" * size)
    found: dict[str, tuple[int, int, bool]] = {}
    for at in range(size):
        data = bytearray(size)
        data[at] = 1
        value = layout.unpack(arch, bytes(data))
        for field in value._fields:
            if getattr(value, field) != getattr(zeros, field):
                start, full = found.get(field, (at,))[0], getattr(ones, field)
                found[field] = start, at + 1 - start, isinstance(full, int) and full < 0
    return size, found


@pytest.mark.parametrize("arch", ARCHES, ids=lambda arch: arch.name)
@pytest.mark.parametrize("name", STRUCTS)
def test_layouts_of_every_machine(name: str, arch: Arch) -> None:
    """Size, offsets and signs are what each machine's C compiler says of the kernel's headers."""
    if name == "stat64" and arch.pointer_size == 8:  # which has no system calls that take one
        with pytest.raises(ValueError, match=f"stat64 of {arch.name} is not known"):
            STRUCTS[name].layout(arch)
        return
    assert places(STRUCTS[name], arch) == KEPT[arch.family, name]


@pytest.mark.parametrize("machine", COMPILERS)
def test_figures_are_the_compilers(machine: str) -> None:
    """The figures that are kept come out again."""
    if shutil.which(COMPILERS[machine][0]) is None:
        pytest.skip(f"needs {COMPILERS[machine][0]}")
    if machine in ("amd64", "i386") and platform.machine() != "x86_64":
        pytest.skip("needs the kernel headers of x86")
    found = {(machine, name): measured(machine, name) for name in STRUCTS}
    if not any(found.values()):
        pytest.skip("needs the kernel's headers")
    assert {key: figures for key, figures in found.items() if figures} == {
        key: figures for key, figures in KEPT.items() if key[0] == machine
    }


@pytest.mark.parametrize("arch", ARCHES, ids=lambda arch: arch.name)
@pytest.mark.parametrize("layout", STRUCTS.values(), ids=STRUCTS)
def test_round_trips(layout: ABIStruct[Any], arch: Arch) -> None:
    """A value comes back; half of one is a fault with its bytes; values are in the machine's byte order."""
    try:
        size = layout.size(arch)
    except ValueError:
        assert (layout.name, arch.pointer_size) == ("stat64", 8)
        return
    value = layout.unpack(arch, bytes(1 + at % 100 for at in range(size)))
    memory = bytearray(size)
    assert layout.copy_out(BytesIO(memory, arch), 0, value) == size
    assert layout.copy_in(BytesIO(memory, arch), 0) == value
    for k in (0, 1, size - 1):
        with pytest.raises(FaultError) as caught:
            layout.copy_in(PatchyIO({0x1000: bytes(memory[:k])}, arch), 0x1000)
        assert (caught.value.transferred, caught.value.partial) == (k, memory[:k])


def test_values_by_hand() -> None:
    """Byte orders, sigsets of big-endian words, a second inode number, and numbers that do not fit."""
    assert abi.TIMESPEC.pack(MIPS, abi.Timespec(1, 2)) == bytes.fromhex("0000000100000002")
    mask = abi.Sigaction(sa_mask=1 << 0 | 1 << 33 | 1 << 127)
    assert abi.SIGACTION.pack(MIPS, mask)[8:] == bytes.fromhex("00000001 00000002 00000000 80000000")
    assert abi.SIGACTION.unpack(MIPS, abi.SIGACTION.pack(MIPS, mask)) == mask
    assert abi.SIGACTION.pack(MIPSEL, mask)[8:] == bytes.fromhex("01000000 02000000 00000000 00000080")
    packed = abi.STAT64.pack(ARM, abi.Stat(st_ino=0x1_2345_6789))
    assert (packed[12:16], packed[96:]) == (bytes.fromhex("89674523"), bytes.fromhex("8967452301000000"))
    assert abi.SOCKADDR_IN.pack(AMD64, abi.SockaddrIn(2, 80, b"\1\2\3\4"))[:8] == b"\2\0\0\x50\1\2\3\4"
    assert abi.SOCKADDR_IN.pack(MIPS, abi.SockaddrIn(2, 80, b"\1\2\3\4"))[:8] == b"\0\2\0\x50\1\2\3\4"
    with pytest.raises(struct.error):
        abi.TIMESPEC.pack(I386, abi.Timespec(1 << 31))
    with pytest.raises(OverflowError):
        abi.SOCKADDR_IN.pack(AMD64, abi.SockaddrIn(2, 1 << 16))
    with pytest.raises(ValueError, match=r"sockaddr_un\.sun_path has 108 bytes, not 109"):
        abi.SOCKADDR_UN.pack(AMD64, abi.SockaddrUn(1, bytes(109)))
    with pytest.raises(ValueError, match="stat of vax is not known"):
        abi.STAT.size(evolve(I386, name="vax"))
    memory = bytearray(32)
    from hostarch import AddrRange, AddrRangeSeq

    copy_out_iovecs(BytesIO(memory, MIPS), 0, AddrRangeSeq([AddrRange(1, 3)]))
    assert abi.IOVEC.copy_in(BytesIO(memory, MIPS), 0) == (1, 2)
