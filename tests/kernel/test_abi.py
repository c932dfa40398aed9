"""Linux's structs: what the running kernel writes is read, and what is written it reads; the layouts of headers.

The kernel's own answers serve for this machine. For i386, and for what arm64 and riscv64 take from asm-generic, the C
compiler and the kernel headers of this machine say where fields are; for ARM and MIPS the tables here do, which were
written down from arch/arm/include/uapi/asm/stat.h, arch/mips/include/uapi/asm/stat.h and signal.h,
include/linux/signal_types.h, and the psABIs.
"""

from __future__ import annotations

import ctypes
import os
import platform
import select
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from hostarch import AMD64, ARM, ARM64, ARM64_16K, I386, MIPS, MIPSEL, PPC64, RISCV64, S390X, Arch
from patchy_io import PatchyIO
from usermem import BytesIO, FaultError, abi, copy_out_iovecs
from usermem.abi import ABIStruct

HERE = {"x86_64": AMD64, "aarch64": ARM64, "riscv64": RISCV64}.get(platform.machine())
with_kernel = pytest.mark.skipif(
    HERE is None or platform.system() != "Linux", reason="needs a Linux kernel whose structs are known here"
)
GCC = shutil.which("gcc")
ALL = [value for value in vars(abi).values() if isinstance(value, ABIStruct)]


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


HEADERS = {
    "stat": "#include <asm/stat.h>",
    "timespec": "#include <linux/time.h>",
    "timeval": "#include <linux/time.h>",
    "__kernel_timespec": "#include <linux/time_types.h>",
    "rlimit": "#include <linux/resource.h>",
    "rlimit64": "#include <linux/resource.h>",
    "new_utsname": "#include <linux/utsname.h>",
    "iovec": "#include <linux/uio.h>",
    "epoll_event": "#include <linux/types.h>\n#include <linux/eventpoll.h>",
    "sigaction": "#include <linux/types.h>\n#include <asm/signal.h>",
    "sockaddr_in": "#include <linux/in.h>",
    "sockaddr_in6": "#include <linux/in6.h>",
    "sockaddr_un": "#include <linux/un.h>",
}


def offsets(layout: ABIStruct[Any], arch: Arch) -> dict[str, tuple[int, int]]:
    """Where the layout has each field, and how long it is, found out by setting all its bits."""
    found: dict[str, tuple[int, int]] = {}
    zero = layout.unpack(arch, bytes(layout.size(arch)))
    for at in range(layout.size(arch)):
        data = bytearray(layout.size(arch))
        data[at] = 1
        value = layout.unpack(arch, bytes(data))
        for field in value._fields:
            if getattr(value, field) != getattr(zero, field):
                start, _ = found.get(field, (at, 0))
                found[field] = start, at + 1 - start
    return found


def compiled(source: str, option: str, tmp_path: Path) -> bool:
    """Whether C takes it; only the kernel's headers are there, so that a machine's C library is not needed."""
    file = tmp_path / "layout.c"
    file.write_text(source)
    # Where Debian has the headers of the machine, which serve both its widths.
    command = [
        str(GCC),
        option,
        "-idirafter",
        "/usr/include/x86_64-linux-gnu",
        "-ffreestanding",
        "-w",
        "-fsyntax-only",
        str(file),
    ]
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


@pytest.mark.skipif(GCC is None, reason="needs gcc")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs the kernel headers of x86")
@pytest.mark.parametrize(
    ("arch", "option", "header"),
    [
        pytest.param(AMD64, "-m64", "", id="amd64"),
        pytest.param(I386, "-m32", "", id="i386"),
        pytest.param(ARM64, "-m64", "#include <asm-generic/stat.h>", id="arm64"),
        pytest.param(RISCV64, "-m64", "#include <asm-generic/stat.h>", id="riscv64"),
    ],
)
@pytest.mark.parametrize("layout", ALL, ids=lambda layout: layout.name)
def test_layouts_of_headers(layout: ABIStruct[Any], arch: Arch, option: str, header: str, tmp_path: Path) -> None:
    """sizeof, and offsetof and sizeof of each field, are what the compiler says of the kernel's headers."""
    if layout.name == "stat64" and arch.pointer_size == 8:
        with pytest.raises(ValueError, match="stat64 of"):
            layout.layout(arch)
        return
    if arch is not AMD64 and layout.name == "sigaction":
        pytest.skip("the headers have the struct of the old sigaction(2), or x86's")
    if arch in (ARM64, RISCV64) and layout.name == "epoll_event":
        pytest.skip("x86 has a packed one")
    include = header if layout.name == "stat" and header else HEADERS.get(layout.name, HEADERS["stat"])
    if not compiled(include, option, tmp_path):
        pytest.skip(f"gcc {option} does not take {include}")
    checks = [f"sizeof(struct {layout.name}) == {layout.size(arch)}"]
    for field, (start, length) in offsets(layout, arch).items():
        checks.append(f"__builtin_offsetof(struct {layout.name}, {field}) == {start}")
        checks.append(f"sizeof(((struct {layout.name} *)0)->{field}) == {length}")
    asserts = [f'_Static_assert({check}, "");' for check in checks]
    if not compiled("\n".join([include, *asserts]), option, tmp_path):
        assert not [each for each in asserts if not compiled(f"{include}\n{each}", option, tmp_path)]
        pytest.fail("gcc takes them one by one only")


def table(names: str, *, end: int) -> dict[str, tuple[int, int]]:
    """``name@offset+size``."""
    found = {}
    for entry in names.split():
        name, _, place = entry.partition("@")
        start, _, length = place.partition("+")
        found[name] = int(start), int(length)
    assert max(start + length for start, length in found.values()) <= end
    return found


OWNERS = "st_mode@{}+4 st_nlink@{}+4 st_uid@{}+4 st_gid@{}+4"
TIMES = "st_atime@{}+4 st_atime_nsec@{}+4 st_mtime@{}+4 st_mtime_nsec@{}+4 st_ctime@{}+4 st_ctime_nsec@{}+4"
SHORT = "st_dev@0+4 st_ino@4+4 st_mode@8+2 st_nlink@10+2 st_uid@12+2 st_gid@14+2 st_rdev@16+4 st_size@20+4 "
SHORT += "st_blksize@24+4 st_blocks@28+4 " + TIMES.format(*range(32, 56, 4))
ARM_64 = "st_dev@0+8 st_rdev@32+8 st_size@48+8 st_blksize@56+4 st_blocks@64+8 " + TIMES.format(*range(72, 96, 4))
O32 = "st_dev@0+4 st_ino@16+4 " + OWNERS.format(20, 24, 28, 32) + " st_rdev@36+4 st_size@48+4 "
O32 += TIMES.format(*range(56, 80, 4)) + " st_blksize@80+4 st_blocks@84+4"
O32_64 = "st_dev@0+4 st_ino@16+8 " + OWNERS.format(24, 28, 32, 36) + " st_rdev@40+4 st_size@56+8 "
O32_64 += TIMES.format(*range(64, 88, 4)) + " st_blksize@88+4 st_blocks@96+8"


@pytest.mark.parametrize(
    ("layout", "arch", "size", "fields"),
    [
        pytest.param(abi.STAT, ARM, 64, SHORT, id="stat-arm"),
        pytest.param(abi.STAT64, ARM, 104, f"{ARM_64} {OWNERS.format(16, 20, 24, 28)}", id="stat64-arm"),
        pytest.param(abi.STAT, MIPS, 144, O32, id="stat-mips"),
        pytest.param(abi.STAT64, MIPS, 104, O32_64, id="stat64-mips"),
        pytest.param(abi.STAT64, MIPSEL, 104, O32_64, id="stat64-mipsel"),
        pytest.param(
            abi.SIGACTION, I386, 20, "sa_handler@0+4 sa_flags@4+4 sa_restorer@8+4 sa_mask@12+8", id="sigaction-i386"
        ),
        pytest.param(
            abi.SIGACTION, ARM, 20, "sa_handler@0+4 sa_flags@4+4 sa_restorer@8+4 sa_mask@12+8", id="sigaction-arm"
        ),
        pytest.param(abi.SIGACTION, MIPS, 24, "sa_flags@0+4 sa_handler@4+4 sa_mask@8+16", id="sigaction-mips"),
        pytest.param(
            abi.SIGACTION, ARM64, 32, "sa_handler@0+8 sa_flags@8+8 sa_restorer@16+8 sa_mask@24+8", id="sigaction-arm64"
        ),
        pytest.param(abi.SIGACTION, RISCV64, 24, "sa_handler@0+8 sa_flags@8+8 sa_mask@16+8", id="sigaction-riscv64"),
        pytest.param(abi.EPOLL_EVENT, ARM, 16, "events@0+4 data@8+8", id="epoll-arm"),
        pytest.param(abi.EPOLL_EVENT, ARM64_16K, 16, "events@0+4 data@8+8", id="epoll-arm64"),
        pytest.param(abi.EPOLL_EVENT, MIPS, 16, "events@0+4 data@8+8", id="epoll-mips"),
        pytest.param(abi.KERNEL_TIMESPEC, MIPS, 16, "tv_sec@0+8 tv_nsec@8+8", id="kernel-timespec-mips"),
        pytest.param(abi.TIMESPEC, MIPS, 8, "tv_sec@0+4 tv_nsec@4+4", id="timespec-mips"),
        pytest.param(abi.TIMESPEC, S390X, 16, "tv_sec@0+8 tv_nsec@8+8", id="timespec-s390x"),
        pytest.param(abi.RLIMIT, ARM, 8, "rlim_cur@0+4 rlim_max@4+4", id="rlimit-arm"),
    ],
)
def test_layouts_of_other_machines(layout: ABIStruct[Any], arch: Arch, size: int, fields: str) -> None:
    """Each field is where the table has it, and nothing else is."""
    found = offsets(layout, arch)
    if layout is abi.STAT64 and arch is ARM:
        assert found.pop("st_ino") == (96, 8)  # what __st_ino has at 12 does not count
    assert layout.size(arch) == size
    assert found == table(fields, end=size)


@pytest.mark.parametrize("arch", [AMD64, I386, ARM, ARM64, RISCV64, MIPS, MIPSEL], ids=lambda arch: arch.name)
@pytest.mark.parametrize("layout", ALL, ids=lambda layout: layout.name)
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
    with pytest.raises(ValueError, match="stat of ppc64 is not known"):
        abi.STAT.size(PPC64)
    memory = bytearray(32)
    from hostarch import AddrRange, AddrRangeSeq

    copy_out_iovecs(BytesIO(memory, MIPS), 0, AddrRangeSeq([AddrRange(1, 3)]))
    assert abi.IOVEC.copy_in(BytesIO(memory, MIPS), 0) == (1, 2)
