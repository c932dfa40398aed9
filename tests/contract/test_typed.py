"""Formats, arrays, ctypes' structures, UTF-16, what is written as strings and vectors, and Linux's string functions."""

from __future__ import annotations

import ctypes
import errno
import struct
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostarch import AMD64, I386, MIPS, PPC64, Arch, mman
from integer_kinds import KINDS, Like, kind_of, plain
from patchy_io import PatchyIO
from usermem import (
    AddressSpace,
    BytesIO,
    FaultError,
    FaultReason,
    Futex,
    FutexTable,
    NameTooLongError,
    abi,
    copy_ctypes_in,
    copy_ctypes_out,
    copy_in_vector,
    copy_int8_in,
    copy_int8_out,
    copy_int16_in,
    copy_int16_out,
    copy_string_in,
    copy_string_out,
    copy_struct_from_user,
    copy_struct_in,
    copy_struct_out,
    copy_utf16_in,
    copy_utf16_out,
    copy_vector_out,
    linux_result,
    strncpy_from_user,
    strnlen_user,
)
from watched_io import WatchedIO

ARCHES = [AMD64, I386, MIPS, PPC64]
each_arch = pytest.mark.parametrize("arch", ARCHES, ids=lambda arch: arch.name)
PAGE = 4096


@each_arch
def test_formats_and_arrays(arch: Arch) -> None:
    """A format is the guest's layout, an array is one read and one write, and half of it is a fault with its bytes."""
    memory = bytearray(4096)
    io = WatchedIO(BytesIO(memory, arch))
    layout = arch.struct("BPh")
    assert copy_struct_out(io, 8, "BPh", 1, 2, -3) == layout.size
    assert memory[8 : 8 + layout.size] == layout.pack(1, 2, -3)
    assert copy_struct_in(io, 8, "BPh") == (1, 2, -3)
    for code in "bBhHiIqQP":
        values = tuple(range(100))
        size = 100 * arch.struct(code).size
        io.accesses.clear()
        assert copy_struct_out(io, 16, f"100{code}", *values) == size
        assert copy_struct_in(io, 16, f"100{code}") == values
        assert [access[1:] for access in io.accesses] == [(16, size)] * 2
    with pytest.raises(FaultError) as caught:
        copy_struct_in(PatchyIO({0x1000: b"x" * 30}, arch), 0x1000, "100I")
    assert (caught.value.partial, linux_result(caught.value)) == (b"x" * 30, -errno.EFAULT)
    assert copy_struct_from_user(BytesIO(arch.struct("I").pack(7), arch), 0, 4, "IP") == (7, 0)


@each_arch
def test_small_signed_numbers(arch: Arch) -> None:
    """int8 and int16."""
    io = BytesIO(bytearray(3), arch)
    assert (copy_int8_out(io, 0, -2), copy_int16_out(io, 1, -3)) == (1, 2)
    assert (copy_int8_in(io, 0), copy_int16_in(io, 1)) == (-2, -3)
    for value in (-129, 128):
        with pytest.raises(OverflowError):
            copy_int8_out(io, 0, value)


class Mixed(ctypes.Structure):
    """Its layout is the same on i386, since nothing needs more than four bytes."""

    _fields_ = (("a", ctypes.c_uint8), ("b", ctypes.c_int32), ("c", ctypes.c_uint16 * 3))


class Wide(ctypes.Structure):
    """i386 has ``b`` elsewhere."""

    _fields_ = (("a", ctypes.c_uint32), ("b", ctypes.c_uint64))


class Tail(ctypes.Structure):
    """All fields are where i386 has them, but not the end."""

    _fields_ = (("a", ctypes.c_uint64), ("b", ctypes.c_uint8))


class Even(ctypes.Structure):
    """Nothing is padded on any machine."""

    _fields_ = (("a", ctypes.c_uint64), ("b", Mixed))


class Packed(ctypes.Structure):
    """i386's alignment, said by hand."""

    _pack_ = 4
    _fields_ = Wide._fields_


class Network(ctypes.BigEndianStructure):
    """As it is on the wire, whatever the guest."""

    _fields_ = (("a", ctypes.c_uint32), ("b", ctypes.c_uint16))


class Flags(ctypes.Structure):
    """Bit fields."""

    _fields_ = (("a", ctypes.c_uint32, 3), ("b", ctypes.c_uint32, 29), ("c", ctypes.c_uint8))


class Derived(Wide):
    """A base's fields come first."""

    _fields_ = (("d", ctypes.c_uint8),)  # type: ignore[assignment]


class Either(ctypes.Union):
    """A union."""

    _fields_ = (("a", ctypes.c_uint32), ("b", ctypes.c_uint64))


class Pointer(ctypes.Structure):
    """A pointer as a number."""

    _fields_ = (("p", ctypes.c_void_p),)


class Followed(ctypes.Structure):
    """A pointer that the interpreter follows."""

    _fields_ = (("p", ctypes.c_char_p),)


class Typed(ctypes.Structure):
    """Another."""

    _fields_ = (("p", ctypes.POINTER(ctypes.c_int)),)


class Packet(Wide):
    """Its bytes, for who asks it, are others."""

    def __bytes__(self) -> bytes:
        return b"a packet"


GOOD: list[tuple[Any, Arch]] = [
    (kind, AMD64) for kind in (Mixed, Wide, Tail, Even, Packed, Network, Flags, Derived, Either, Pointer, Packet)
]
GOOD += [(kind, I386) for kind in (Mixed, Even, Packed, Network, Flags, ctypes.c_uint32 * 9)]
GOOD += [(Network, MIPS), (Network * 2, PPC64), (ctypes.c_uint8 * 5, MIPS)]


@pytest.mark.parametrize(("kind", "arch"), GOOD)
def test_ctypes(kind: Any, arch: Arch) -> None:
    """Each comes back as it was; a fault is exact, and what is read does not depend on the memory afterwards."""
    size = ctypes.sizeof(kind)
    content = bytes(range(1, size + 1))
    memory = bytearray(size + 1)
    io = BytesIO(memory, arch)
    assert copy_ctypes_out(io, 1, kind.from_buffer_copy(content)) == size
    assert memory[1:] == content
    found = copy_ctypes_in(io, 1, kind)
    memory[:] = bytes(size + 1)
    assert isinstance(found, kind)
    assert memoryview(found).tobytes() == content
    for k in (0, 1, size - 1):
        half = PatchyIO({0x1000: bytearray(content[:k])}, arch)
        with pytest.raises(FaultError) as caught:
            copy_ctypes_in(half, 0x1000, kind)
        assert (caught.value.transferred, caught.value.partial) == (k, content[:k])
        with pytest.raises(FaultError) as caught:
            copy_ctypes_out(half, 0x1000, found)
        assert (caught.value.transferred, caught.value.partial) == (k, content[:k])


@pytest.mark.parametrize(
    ("kind", "arch", "message"),
    [
        (Wide, I386, r"Wide\.b is at 4 in i386, at 8 here"),
        (Tail, I386, "Tail has 12 bytes in i386, 16 here"),
        (Derived, I386, r"b is at 4 in i386"),
        (Pointer, I386, "c_void_p has 8 bytes"),
        (Wide, MIPS, "little-endian: use BigEndianStructure for mips"),
        (Mixed * 2, PPC64, "little-endian"),
        (Followed, AMD64, "c_char_p is a pointer"),
        (Typed, AMD64, "use c_uint64 for a pointer"),
        (ctypes.py_object * 2, AMD64, "py_object"),
        (ctypes.c_uint32, AMD64, "structure, union or array"),
        (int, AMD64, "structure, union or array"),
        ("Wide", AMD64, "structure, union or array"),
    ],
)
def test_ctypes_of_another_layout(kind: Any, arch: Arch, message: str) -> None:
    """A TypeError says what is wrong, and nothing is read."""
    with pytest.raises(TypeError, match=message):
        copy_ctypes_in(PatchyIO({}, arch), 0, kind)


def naive_utf16(io: BytesIO | PatchyIO | AddressSpace, addr: int, maxlen: int) -> tuple[object, ...]:
    """The same by single reads of two bytes, and of one where they fault."""
    units = b""
    for _ in range(maxlen):
        unit = bytearray(2)
        try:
            io.copy_in(addr + len(units), unit)
        except FaultError as exc:
            done = units.decode(codec(io.arch), "surrogatepass")
            return "fault", done, len(units) + exc.transferred, exc.address
        if unit == b"\0\0":
            return "string", units.decode(codec(io.arch), "surrogatepass")
        units += unit
    return "too long", units.decode(codec(io.arch), "surrogatepass")


def codec(arch: Arch) -> str:
    """Python's name of the guest's UTF-16."""
    return "utf-16-le" if arch.byte_order == "little" else "utf-16-be"


def utf16(io: BytesIO | PatchyIO | AddressSpace, addr: int, maxlen: int) -> tuple[object, ...]:
    """copy_utf16_in's answer, comparable."""
    try:
        return "string", copy_utf16_in(io, addr, maxlen)
    except FaultError as exc:
        return "fault", exc.partial, exc.transferred, exc.address
    except NameTooLongError as exc:
        return "too long", exc.partial


@given(
    arch=st.sampled_from([AMD64, MIPS]),
    units=st.lists(st.sampled_from([0, 1, 0x100, 0x61, 0xD800, 0xDC00, 0xFFFF]) | st.integers(1, 0xFFFF), max_size=80),
    start=st.sampled_from([0x1000, 0x1F81, PAGE * 2 - 3, 0x1FFE]),
    cut=st.integers(0, 3),
    maxlen=st.integers(0, 100),
)
def test_utf16_against_single_reads(arch: Arch, units: list[int], start: int, cut: int, maxlen: int) -> None:
    """Any units, lone surrogates too, at odd addresses and over pages; a NUL, a fault or the limit ends them."""
    data = struct.pack(f"{'<' if arch is AMD64 else '>'}{len(units)}H", *units)
    io = PatchyIO({start: data[: max(len(data) - cut, 0)]}, arch)
    assert utf16(io, start, maxlen) == naive_utf16(io, start, maxlen)


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 2047, 2048, 5000])
@pytest.mark.parametrize("offset", [0, 1])
def test_utf16_of_any_length(length: int, offset: int) -> None:
    """Nothing behind the page of the NUL is touched, and the reads are few."""
    string = "\u0100a" * (length // 2) + "b" * (length % 2)
    data = string.encode("utf-16-le")
    io = WatchedIO(BytesIO(bytes(offset) + data + bytes(3 * PAGE)))
    assert copy_utf16_in(io, offset, length + 1) == string
    end = max(addr + n for _, addr, n in io.accesses)
    assert (end - 1) // PAGE <= (offset + len(data) + 1) // PAGE
    assert all(addr // PAGE == (addr + n - 1) // PAGE for _, addr, n in io.accesses)
    assert len(io.accesses) <= 8 + len(data) // PAGE
    with pytest.raises(NameTooLongError) as caught:
        copy_utf16_in(io, offset, length)
    assert caught.value.partial == string


@each_arch
def test_utf16_out(arch: Arch) -> None:
    """Units and a NUL, in the guest's order; half of it is a fault with its bytes."""
    memory = bytearray(b"\xee" * 12)
    text = "a\ud800\U0001f600"
    data = (text + "\0").encode(codec(arch), "surrogatepass")
    assert copy_utf16_out(BytesIO(memory, arch), 1, text) == len(data) == 10
    assert memory == b"\xee" + data + b"\xee"
    assert copy_utf16_in(BytesIO(memory, arch), 1, 9) == text
    with pytest.raises(FaultError) as caught:
        copy_utf16_out(PatchyIO({0x1000: bytearray(3)}, arch), 0x1000, text)
    assert (caught.value.transferred, caught.value.partial) == (3, data[:3])
    with pytest.raises(ValueError, match="NUL"):
        copy_utf16_out(BytesIO(memory, arch), 0, "a\0b")


def test_string_out() -> None:
    """The bytes and a NUL; a NUL in them is refused; half of it is a fault with its bytes."""
    memory = bytearray(b"\xee" * 7)
    assert copy_string_out(BytesIO(memory), 1, b"path") == 5
    assert memory == b"\xeepath\0\xee"
    with pytest.raises(ValueError, match="NUL"):
        copy_string_out(BytesIO(memory), 1, b"a\0b")
    with pytest.raises(FaultError) as caught:
        copy_string_out(PatchyIO({0x1000: bytearray(2)}), 0x1000, b"path")
    assert (caught.value.partial, linux_result(caught.value)) == (b"pa", -errno.EFAULT)


@each_arch
@pytest.mark.parametrize("strings", [[], [b""], [b"sh", b"-c", b"", b"echo " + b"x" * 5000]])
def test_vector_out(arch: Arch, strings: list[bytes]) -> None:
    """What copy_in_vector reads; the strings first, then the table, each by one copy."""
    memory = bytearray(8192)
    io = WatchedIO(BytesIO(memory, arch))
    size = sum(map(len, strings)) + len(strings)
    assert copy_vector_out(io, 16, strings, 256) == size
    assert [access[1:] for access in io.accesses] == [(256, size), (16, (len(strings) + 1) * arch.pointer_size)]
    assert copy_in_vector(io, 16, 1 << 17, 1 << 21) == strings


@each_arch
def test_vector_out_faults(arch: Arch) -> None:
    """For every byte: what is stored is in ``partial``, and no table is begun before all strings are there."""
    strings, word = [b"ab", b"c"], arch.pointer_size
    data = b"ab\0c\0"
    table = b"".join(arch.pointer.pack(x) for x in (0x2000, 0x2003, 0))
    for k in range(len(data)):
        there = bytearray(b"\xee" * 64)
        with pytest.raises(FaultError) as caught:
            copy_vector_out(PatchyIO({0x1000: there, 0x2000: bytearray(k)}, arch), 0x1000, strings, 0x2000)
        fault = caught.value
        assert (fault.transferred, fault.partial, fault.address) == (k, data[:k], 0x2000 + k)
        assert there == b"\xee" * 64
    for k in range(3 * word):
        with pytest.raises(FaultError) as caught:
            copy_vector_out(PatchyIO({0x1000: bytearray(k), 0x2000: bytearray(9)}, arch), 0x1000, strings, 0x2000)
        fault = caught.value
        assert (fault.transferred, fault.partial, fault.address) == (5 + k, data + table[:k], 0x1000 + k)
        assert linux_result(fault) == -errno.EFAULT


def test_vectors_that_cannot_be() -> None:
    """A NUL in a string, and strings beyond the address space: nothing is written."""
    memory = bytearray(64)
    with pytest.raises(ValueError, match="NUL"):
        copy_vector_out(BytesIO(memory), 0, [b"a\0"], 32)
    for arch, at in ((I386, (1 << 32) - 2), (I386, 1 << 40), (AMD64, -1), (AMD64, (1 << 64) - 2)):
        with pytest.raises(FaultError) as caught:
            copy_vector_out(BytesIO(memory, arch), 0, [b"ab"], at)
        assert (caught.value.reason, caught.value.transferred) == (FaultReason.OUTSIDE_RANGE, 0)
    assert memory == bytes(64)


@given(content=st.binary(max_size=100), hole=st.booleans(), count=st.integers(0, 120), near=st.integers(0, 70))
def test_linuxs_string_functions(content: bytes, hole: bool, count: int, near: int) -> None:
    """strncpy_from_user and strnlen_user by their definitions, over a byte at a time."""
    start = 2 * PAGE - near
    io = PatchyIO({start: content if hole else content + bytes(1)})
    text = content.partition(b"\0")[0]
    faults = hole and 0 not in content and count > len(content)
    for call, expected in (
        (strncpy_from_user, text[:count]),
        (strnlen_user, min(len(text), count) + 1 if count else 0),
    ):
        if faults:
            with pytest.raises(FaultError) as caught:
                call(io, start, count)
            assert (caught.value.address, caught.value.partial) == (start + len(content), content)
        else:
            assert call(io, start, count) == expected


def kernel_name(addr: int) -> bytes | int:
    """What prctl(PR_SET_NAME) took from addr, by strncpy_from_user of 15 bytes; or -EFAULT."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong]
    found: list[bytes | int] = []

    def run() -> None:
        if libc.prctl(15, addr) < 0:
            found.append(-ctypes.get_errno())
            return
        name = ctypes.create_string_buffer(16)
        libc.prctl(16, ctypes.addressof(name))
        found.append(name.value)

    thread = threading.Thread(target=run)  # which alone gets the name
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "prctl"), reason="needs Linux")
@pytest.mark.parametrize("top", [False, True])
def test_strncpy_from_user_as_the_kernel(top: bool) -> None:
    """Strings that end at a hole, and at the very top of user space, before the limit of 15, at it and behind it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    wanted = AMD64.max_addr - 2 * PAGE if top else 0
    flags = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | (0x100000 if top else 0)  # MAP_FIXED_NOREPLACE
    base = libc.mmap(wanted or None, 2 * PAGE, 3, flags, -1, 0)
    if base is None or base >= 1 << 63 or (top and base != wanted) or base == ctypes.c_void_p(-1).value:
        pytest.skip("the top of user space is elsewhere, or taken")
    try:
        if not top:
            libc.munmap(base + PAGE, PAGE)
        end = base + (2 if top else 1) * PAGE
        space = AddressSpace()
        fixed = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED
        space.mmap(end - PAGE, PAGE, mman.PROT_READ | mman.PROT_WRITE, fixed)
        for length in range(20):
            for terminated in (False, True):
                text = b"abcdefghijklmnopqrstuvw"[:length] + b"\0" * terminated
                ctypes.memmove(end - len(text), text, len(text))
                space.copy_out(end - len(text), text)
                try:
                    ours: bytes | int = strncpy_from_user(space, end - len(text), 15)
                except FaultError as fault:
                    ours = linux_result(fault)
                assert ours == kernel_name(end - len(text)), (length, terminated)
        space.close()
    finally:
        libc.munmap(base, 2 * PAGE)


def test_reads_leave_the_space_as_it_is() -> None:
    """copy_string_in and kin agree over an AddressSpace, cached or not."""
    with AddressSpace() as space:
        base = space.mmap(0, 2 * PAGE, 3, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
        for at in (base, base + PAGE - 3):
            copy_string_out(space, at, b"string")
            for io in (space, WatchedIO(space)):
                assert copy_string_in(io, at, 99) == strncpy_from_user(io, at, 99) == b"string"
                assert strnlen_user(io, at, 99) == 7
            copy_utf16_out(space, at, "string")
            assert utf16(space, at, 99) == ("string", "string")


@pytest.mark.parametrize("name", KINDS)
def test_integers_of_all_kinds(name: str) -> None:
    """Addresses, counts and a futex's numbers may be any integers."""
    i = kind_of(name)

    def answers(i: Like) -> list[object]:
        memory = bytearray(b"ab\0\0" * 16)
        io, table = BytesIO(memory), FutexTable()
        word = Futex(io, i(4))
        table.wait(word, i(0x6261), bool, bitset=i(1))
        return [
            strncpy_from_user(io, i(1), i(9)),
            strnlen_user(io, i(1), i(127)),
            strnlen_user(PatchyIO({0: b"x" * 300}), i(0), i(127)),
            copy_utf16_in(io, i(2), i(9)),
            copy_utf16_out(io, i(8), "x"),
            copy_string_out(io, i(8), b"x"),
            copy_vector_out(io, i(8), [b"x"], i(40)),
            copy_struct_from_user(io, i(8), i(4), "I"),
            copy_int8_out(io, i(9), i(7)),
            tuple(copy_ctypes_in(io, i(8), ctypes.c_uint8 * 4)),
            abi.TIMEVAL.copy_in(io, i(8), size=i(12)),
            abi.SOCKADDR_IN.pack(AMD64, abi.SockaddrIn(2, i(80))),
            abi.SIGACTION.pack(AMD64, abi.Sigaction(sa_mask=i(9))),
            abi.SIGACTION.copy_out(io, i(8), abi.Sigaction(sa_mask=i(9))),
            table.requeue(word, word, i(0), i(1), val=i(0x6261)),
            table.wake(word, i(2), bitset=i(3)),
            bytes(memory),
        ]

    assert answers(i) == answers(plain)
