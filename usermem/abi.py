"""Linux's structs that system calls read and write, as each machine's kernel lays them out.

Each is an :class:`ABIStruct`: ``abi.STAT.copy_out(space, addr, abi.Stat(st_size=5))``, ``abi.TIMESPEC.copy_in(space,
addr).tv_nsec``. Values are named tuples with Linux's names, all of which may be left out and are 0 then; the machine is
that of the IO. A layout is a struct format in which each field has its name (:meth:`hostarch.Arch.struct`), with some
codes more: ``be16`` and ``be32`` are in network byte order, ``sigset64`` and ``sigset128`` are the kernel's sigset_t
(signal n is bit n - 1), and ``low32`` is a number cut to 32 bits, as a stat64 has its inode number a second time.

Source: Linux include/uapi/ and arch/*/include/uapi/asm/ (stat.h, signal.h), include/linux/signal_types.h.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import itemgetter
from struct import Struct
from struct import error as StructError
from typing import Any, Final, Generic, NamedTuple, TypeVar

from hostarch import Arch, ByteOrder
from safemem.buffers import check_count, check_int
from usermem.errors import bytes_before, cut_short
from usermem.memory_io import IO, arch_of, read_bytes

V = TypeVar("V", bound=tuple[Any, ...])

_new = tuple.__new__
_FIELD: Final = re.compile(r"(?:(\w+):)?([\w?]+)")
_OWN: Final = {"be16": "2s", "be32": "4s", "low32": "4s", "sigset64": "8s", "sigset128": "16s"}


class Timespec(NamedTuple):
    """struct timespec, and with 64 bits struct __kernel_timespec."""

    tv_sec: int = 0
    tv_nsec: int = 0


class Timeval(NamedTuple):
    """struct timeval."""

    tv_sec: int = 0
    tv_usec: int = 0


class Rlimit(NamedTuple):
    """struct rlimit, and struct rlimit64."""

    rlim_cur: int = 0
    rlim_max: int = 0


class Utsname(NamedTuple):
    """struct new_utsname (uname(2)). What is read has its NULs: 65 bytes each."""

    sysname: bytes = b""
    nodename: bytes = b""
    release: bytes = b""
    version: bytes = b""
    machine: bytes = b""
    domainname: bytes = b""


class Iovec(NamedTuple):
    """struct iovec. Tables of them: :func:`usermem.copy_in_iovecs`."""

    iov_base: int = 0
    iov_len: int = 0


class Stat(NamedTuple):
    """struct stat, and struct stat64; the fields are in the order of x86-64's."""

    st_dev: int = 0
    st_ino: int = 0
    st_nlink: int = 0
    st_mode: int = 0
    st_uid: int = 0
    st_gid: int = 0
    st_rdev: int = 0
    st_size: int = 0
    st_blksize: int = 0
    st_blocks: int = 0
    st_atime: int = 0
    st_atime_nsec: int = 0
    st_mtime: int = 0
    st_mtime_nsec: int = 0
    st_ctime: int = 0
    st_ctime_nsec: int = 0


class Sigaction(NamedTuple):
    """The kernel's struct sigaction (rt_sigaction), which is not the C library's."""

    sa_handler: int = 0
    sa_flags: int = 0
    sa_restorer: int = 0
    sa_mask: int = 0


class EpollEvent(NamedTuple):
    """struct epoll_event; ``data`` is the union as a uint64."""

    events: int = 0
    data: int = 0


class SockaddrIn(NamedTuple):
    """struct sockaddr_in; the port is a number, the address 4 bytes."""

    sin_family: int = 0
    sin_port: int = 0
    sin_addr: bytes = b""


class SockaddrIn6(NamedTuple):
    """struct sockaddr_in6; the port and the flow are numbers, the address 16 bytes."""

    sin6_family: int = 0
    sin6_port: int = 0
    sin6_flowinfo: int = 0
    sin6_addr: bytes = b""
    sin6_scope_id: int = 0


class SockaddrUn(NamedTuple):
    """struct sockaddr_un. What is read has 108 bytes of path, whatever its size was."""

    sun_family: int = 0
    sun_path: bytes = b""


class ABIStruct(Generic[V]):
    """One struct of Linux's: its layout on each machine, and the class of its values, which have ``fields``."""

    def __init__(self, name: str, kind: type[V], layouts: dict[str, str] | str) -> None:
        """``layouts`` by the names of machines, or one for all; ``*`` is for those that have none of their own."""
        self.name = name
        self.kind = kind
        self.fields: tuple[str, ...] = kind._fields  # type: ignore[attr-defined]  # of a NamedTuple
        self._layouts = {"*": layouts} if isinstance(layouts, str) else layouts
        self._compiled: dict[tuple[object, ...], _Layout[V]] = {}
        self._recent: tuple[Arch | None, Any] = None, None
        """The last machine asked for, and its layout: to find it among all takes as long as to read the struct."""

    def layout(self, arch: Arch) -> Struct:
        """The struct's format. Raises ValueError if the machine's is not known, or has no such struct."""
        return self._of(arch).struct

    def size(self, arch: Arch) -> int:
        """sizeof, in bytes. Raises ValueError as :meth:`layout`."""
        return self._of(arch).struct.size

    def unpack(self, arch: Arch, data: bytes) -> V:
        """The value that these bytes are. Raises ValueError as :meth:`layout`, struct.error for another size."""
        layout = self._of(arch)
        return layout.value(layout.struct.unpack(data))

    def pack(self, arch: Arch, value: V) -> bytes:
        """The bytes of a value; padding is zero.

        Raises ValueError as :meth:`layout`, and for bytes that are too long; struct.error or OverflowError for a number
        that does not fit.
        """
        return self._of(arch).data(value)

    def copy_in(self, io: IO, addr: int, *, size: int | None = None, ignore_permissions: bool = False) -> V:
        """The value at addr. Of a shorter one, as socket addresses may be, only ``size`` bytes are read; the rest is 0.

        Raises FaultError with the bytes before the fault in ``partial``; ValueError as :meth:`layout`, and if size is
        negative.
        """
        arch, layout = self._recent
        try:  # half the time of what follows
            if io.arch is arch and size is None and not ignore_permissions:  # type: ignore[attr-defined]
                values = io.copy_struct_in(addr, layout.struct)  # type: ignore[attr-defined]
                return _new(layout.kind, values) if layout.plain else layout.value(values)  # type: ignore[no-any-return]
        except AttributeError:
            if hasattr(io, "copy_struct_in") and hasattr(io, "arch"):
                raise
        layout = self._of(arch_of(io))
        n = layout.size if size is None else min(check_count(size, "size"), layout.size)
        data = read_bytes(io, addr, n, ignore_permissions=ignore_permissions)
        return layout.value(layout.struct.unpack(data.ljust(layout.size, b"\0")))

    def copy_out(self, io: IO, addr: int, value: V, *, ignore_permissions: bool = False) -> int:
        """Store a value at addr and return its size in bytes.

        Raises FaultError with the bytes before the fault, which are stored, in ``partial``; else as :meth:`pack`, and
        nothing is written then.
        """
        arch, layout = self._recent
        if layout is None or getattr(io, "arch", None) is not arch:
            layout = self._of(arch_of(io))
        try:  # a call less, a tenth of the time
            data = layout.struct.pack(*value) if layout.plain else layout.data(value)
        except StructError:
            data = layout.data(value)
        try:
            if not ignore_permissions:  # a call with a keyword takes longer
                return io.copy_out(addr, data)
            return io.copy_out(addr, data, ignore_permissions=True)
        except OSError as error:
            cut_short(error, data[: bytes_before(error)])
            raise

    def _of(self, arch: Arch) -> _Layout[V]:
        key = arch.name, arch.byte_order, arch.pointer_size, arch.max_align
        found = self._compiled.get(key)
        if found is None:
            text = self._layouts.get(arch.family) or self._layouts.get("*")
            if text is None:
                raise ValueError(f"struct {self.name} of {arch.name} is not known")
            found = self._compiled[key] = _Layout(text, arch, self)
        self._recent = arch, found
        return found


class _Layout(Generic[V]):
    """A layout on one machine: how its fields and those of a value belong together."""

    def __init__(self, text: str, arch: Arch, of: ABIStruct[V]) -> None:
        self._arch, self.kind, self._name = arch, of.kind, of.name
        fields = of.fields
        items = [(name, "Q" if code == "sigset64" and arch.pointer_size == 8 else code) for name, code in _items(text)]
        prefix = "=" if text[0] == "=" else ""
        self.struct = arch.struct(prefix + " ".join(_OWN.get(code, code) for _, code in items))
        self.size = self.struct.size
        named = [item for item in items if item[0]]
        self.names = [name for name, _ in named]
        self.own = [(at, code) for at, (_, code) in enumerate(named) if code in _OWN]
        self.strings = [(at, int(code[:-1])) for at, (_, code) in enumerate(named) if code[:-1].isdigit()]
        self.picked: _Pick = itemgetter(*[fields.index(name) for name in self.names])
        last = {name: at for at, name in enumerate(self.names)}  # of two of one name the second counts
        self.in_order: _Pick = itemgetter(*[last.get(field, len(self.names)) for field in fields])
        self.plain = self.names == list(fields) and not self.own and not self.strings
        """Whether unpacked values are the fields, in their order."""

    def value(self, values: tuple[Any, ...]) -> V:
        """The value that unpacked values are."""
        if self.plain:
            return _new(self.kind, values)
        if self.own:
            values = self.decoded(values, self._arch)
        return _new(self.kind, self.in_order((*values, 0)))

    def data(self, value: V) -> bytes:
        """The bytes of a value. Raises as :meth:`ABIStruct.pack`."""
        values = self.picked(value)
        for at, size in self.strings:
            if len(values[at]) > size:  # struct cuts them without a word
                raise ValueError(f"{self._name}.{self.names[at]} has {size} bytes, not {len(values[at])}")
        if self.own:
            values = self.encoded(values, self._arch)
        try:
            return self.struct.pack(*values)
        except StructError:  # it takes no integers of ctypes
            ints = [each if isinstance(each, bytes) else check_int(each, self._name) for each in values]
            return self.struct.pack(*ints)

    def decoded(self, values: tuple[Any, ...], arch: Arch) -> tuple[Any, ...]:
        """Values with those that have codes of our own as numbers."""
        found = list(values)
        for at, code in self.own:
            found[at] = int.from_bytes(_words(found[at], code, arch), _order(code, arch))
        return tuple(found)

    def encoded(self, values: tuple[Any, ...], arch: Arch) -> tuple[Any, ...]:
        """Values with those that have codes of our own as bytes. Raises OverflowError."""
        found = list(values)
        for at, code in self.own:
            number = check_int(found[at], self.names[at])
            if code == "low32":
                number &= 0xFFFF_FFFF
            found[at] = _words(number.to_bytes(int(_OWN[code][:-1]), _order(code, arch)), code, arch)
        return tuple(found)


def _items(text: str) -> list[tuple[str, str]]:
    """The fields of a layout, with their codes; what has no name is padding."""
    return _FIELD.findall(text.removeprefix("="))


_Pick = Callable[[tuple[Any, ...]], tuple[Any, ...]]


def _order(code: str, arch: Arch) -> ByteOrder:
    return "big" if code.startswith("be") else arch.byte_order


def _words(data: bytes, code: str, arch: Arch) -> bytes:
    """A sigset's longs, the lowest signals first, in the order in which one number has them, or the other way round."""
    if code[:3] != "sig" or arch.byte_order == "little":
        return data
    size = arch.pointer_size
    return b"".join([data[at : at + size] for at in range(len(data) - size, -1, -size)])


_TIMES: Final = "st_atime:L st_atime_nsec:L st_mtime:L st_mtime_nsec:L st_ctime:L st_ctime_nsec:L"
_LONG_TIMES: Final = "st_atime:l st_atime_nsec:L st_mtime:l st_mtime_nsec:L st_ctime:l st_ctime_nsec:L"
_OWNERS: Final = "st_mode:I st_nlink:I st_uid:I st_gid:I"
_GENERIC: Final = f"st_dev:L st_ino:L {_OWNERS} st_rdev:L 8x st_size:l st_blksize:i 4x st_blocks:l {_LONG_TIMES} 8x"
_WIDE: Final = "st_dev:L st_ino:L st_nlink:L st_mode:I st_uid:I st_gid:I 4x st_rdev:L"
_POWER: Final = f"{_WIDE} st_size:l st_blksize:L st_blocks:L {_TIMES} 24x"
_SHORT: Final = (
    f"st_dev:L st_ino:L st_mode:H st_nlink:H st_uid:H st_gid:H st_rdev:L st_size:L st_blksize:L st_blocks:L {_TIMES} 8x"
)
_GLIBC21: Final = (
    f"st_dev:Q 4x st_ino:low32 {_OWNERS} st_rdev:Q 4x st_size:q st_blksize:L st_blocks:Q {_TIMES} st_ino:Q"
)
_O32: Final = (
    f"st_dev:I 12x st_ino:L {_OWNERS} st_rdev:I 8x st_size:l 4x "
    "st_atime:l st_atime_nsec:l st_mtime:l st_mtime_nsec:l st_ctime:l st_ctime_nsec:l st_blksize:l st_blocks:l 56x"
)
_O32_64: Final = f"st_dev:L 12x st_ino:Q {_OWNERS} st_rdev:L 12x st_size:q {_LONG_TIMES} st_blksize:L 4x st_blocks:q"
_RESTORER: Final = "sa_handler:P sa_flags:L sa_restorer:P sa_mask:sigset64"
_IRIX: Final = "sa_flags:I sa_handler:P sa_mask:sigset128"

TIMESPEC: Final = ABIStruct("timespec", Timespec, "tv_sec:l tv_nsec:l")
KERNEL_TIMESPEC: Final = ABIStruct("__kernel_timespec", Timespec, "tv_sec:q tv_nsec:q")
"""Of system calls whose names end in ``time64``, on 32-bit machines."""
TIMEVAL: Final = ABIStruct("timeval", Timeval, "tv_sec:l tv_usec:l")
RLIMIT: Final = ABIStruct("rlimit", Rlimit, "rlim_cur:L rlim_max:L")
RLIMIT64: Final = ABIStruct("rlimit64", Rlimit, "rlim_cur:Q rlim_max:Q")
"""Of prlimit64."""
UTSNAME: Final = ABIStruct(
    "new_utsname", Utsname, "sysname:65s nodename:65s release:65s version:65s machine:65s domainname:65s"
)
IOVEC: Final = ABIStruct("iovec", Iovec, "iov_base:P iov_len:L")
STAT: Final = ABIStruct(
    "stat",
    Stat,
    {
        "amd64": f"{_WIDE} st_size:l st_blksize:l st_blocks:l {_TIMES} 24x",
        "ppc64": _POWER,
        "ppc64le": _POWER,
        "s390x": f"{_WIDE} st_size:L {_TIMES} st_blksize:L st_blocks:l 24x",
        "arm64": _GENERIC,
        "riscv64": _GENERIC,
        "i386": _SHORT,
        "arm": _SHORT,
        "mips": _O32,
        "mipsel": _O32,
    },
)
STAT64: Final = ABIStruct("stat64", Stat, {"i386": _GLIBC21, "arm": _GLIBC21, "mips": _O32_64, "mipsel": _O32_64})
"""Of stat64, fstat64, fstatat64, on 32-bit machines."""
SIGACTION: Final = ABIStruct(
    "sigaction",
    Sigaction,
    {
        "amd64": _RESTORER,
        "i386": _RESTORER,
        "arm": _RESTORER,
        "arm64": _RESTORER,
        "ppc64": _RESTORER,
        "ppc64le": _RESTORER,
        "s390x": _RESTORER,
        "riscv64": "sa_handler:P sa_flags:L sa_mask:sigset64",
        "mips": _IRIX,
        "mipsel": _IRIX,
    },
)
EPOLL_EVENT: Final = ABIStruct("epoll_event", EpollEvent, {"amd64": "=events:I data:Q", "*": "events:I data:Q"})
SOCKADDR_IN: Final = ABIStruct("sockaddr_in", SockaddrIn, "sin_family:H sin_port:be16 sin_addr:4s 8x")
SOCKADDR_IN6: Final = ABIStruct(
    "sockaddr_in6", SockaddrIn6, "sin6_family:H sin6_port:be16 sin6_flowinfo:be32 sin6_addr:16s sin6_scope_id:I"
)
SOCKADDR_UN: Final = ABIStruct("sockaddr_un", SockaddrUn, "sun_family:H sun_path:108s")
