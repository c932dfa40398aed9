"""Integers, pointers and structs in user memory: the guest's width and byte order, exact at every fault."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostarch import AMD64, I386, MIPS, PPC64, S390X, Arch, mman
from patchy_io import PatchyIO
from simulator_file import SimulatorFile
from usermem import (
    AddressSpace,
    BytesIO,
    FaultError,
    FaultReason,
    copy_int32_in,
    copy_int32_out,
    copy_int64_in,
    copy_int64_out,
    copy_pointer_in,
    copy_pointer_out,
    copy_struct_from_user,
    copy_struct_in,
    copy_struct_out,
    copy_uint8_in,
    copy_uint8_out,
    copy_uint16_in,
    copy_uint16_out,
    copy_uint32_in,
    copy_uint32_out,
    copy_uint64_in,
    copy_uint64_out,
    linux_result,
)
from watched_io import WatchedIO

ARCHES = [AMD64, I386, MIPS, PPC64, S390X]
each_arch = pytest.mark.parametrize("arch", ARCHES, ids=lambda arch: arch.name)

# The format is the standard library's, for the same number in the machine's order.
INTS = [
    pytest.param(copy_uint8_in, copy_uint8_out, "B", id="uint8"),
    pytest.param(copy_uint16_in, copy_uint16_out, "H", id="uint16"),
    pytest.param(copy_uint32_in, copy_uint32_out, "I", id="uint32"),
    pytest.param(copy_uint64_in, copy_uint64_out, "Q", id="uint64"),
    pytest.param(copy_int32_in, copy_int32_out, "i", id="int32"),
    pytest.param(copy_int64_in, copy_int64_out, "q", id="int64"),
    pytest.param(copy_pointer_in, copy_pointer_out, "P", id="pointer"),
]
In = Callable[..., int]
Out = Callable[..., int]


def layout(arch: Arch, code: str) -> struct.Struct:
    """One number of this format on this machine."""
    if code == "P":
        code = "Q" if arch.pointer_size == 8 else "I"
    return struct.Struct(("<" if arch.byte_order == "little" else ">") + code)


def extremes(code: struct.Struct) -> list[int]:
    """The least and the greatest values, their neighbours, and some with every byte different."""
    bits = 8 * code.size
    if code.format[-1].islower():
        return [0, -1, 1, -(1 << bits - 1), (1 << bits - 1) - 1, 0x0102030405060708 >> 64 - bits]
    return [0, 1, (1 << bits) - 1, 1 << bits - 1, 0x0102030405060708 >> 64 - bits]


@each_arch
@pytest.mark.parametrize(("copy_in", "copy_out", "code"), INTS)
def test_values(arch: Arch, copy_in: In, copy_out: Out, code: str) -> None:
    """Each value is stored as ``struct`` packs it, at any alignment, touches no other byte, and reads back."""
    number = layout(arch, code)
    for addr in range(4):
        for value in extremes(number):
            memory = bytearray(b"\xee" * 12)
            io = BytesIO(memory, arch)
            assert copy_out(io, addr, value) == number.size
            assert memory == b"\xee" * addr + number.pack(value) + b"\xee" * (12 - addr - number.size)
            assert copy_in(io, addr) == value


@each_arch
@pytest.mark.parametrize(("copy_in", "copy_out", "code"), INTS)
def test_values_that_do_not_fit(arch: Arch, copy_in: In, copy_out: Out, code: str) -> None:
    """Too great, too small: OverflowError, and nothing is written."""
    number = layout(arch, code)
    low, high = min(extremes(number)), max(extremes(number))
    memory = bytearray(b"\xee" * 8)
    for value in (low - 1, high + 1, 1 << 100, -(1 << 100)):
        with pytest.raises(OverflowError):
            copy_out(BytesIO(memory, arch), 0, value)
    assert memory == b"\xee" * 8


@each_arch
@pytest.mark.parametrize(("copy_in", "copy_out", "code"), INTS)
def test_faults_at_every_byte(arch: Arch, copy_in: In, copy_out: Out, code: str) -> None:
    """For every k: half a number is no result but EFAULT, with its bytes in ``partial``, in and out."""
    number = layout(arch, code)
    content = number.pack(extremes(number)[-1])
    for k in range(number.size):
        memory = bytearray(content[:k])
        io = PatchyIO({0x2000 - k: memory}, arch)
        with pytest.raises(FaultError) as caught:
            copy_in(io, 0x2000 - k)
        fault = caught.value
        assert (fault.address, fault.transferred, fault.partial) == (0x2000, k, content[:k])
        assert linux_result(fault) == -14
        with pytest.raises(FaultError) as caught:
            copy_out(io, 0x2000 - k, 1)
        fault = caught.value
        assert (fault.address, fault.transferred, fault.partial) == (0x2000, k, number.pack(1)[:k])
        assert memory == number.pack(1)[:k]
        assert linux_result(fault) == -14


@pytest.mark.parametrize("format_", ["<IHBx", ">qd", "@ll", "=4s", "<", "!3H2x"])
@each_arch
def test_structs(arch: Arch, format_: str) -> None:
    """A struct is as its own format says, whatever the machine; faults are exact and carry ``partial``."""
    shape = struct.Struct(format_)
    content = bytes(range(1, shape.size + 1))
    values = shape.unpack(content)
    packed = shape.pack(*values)
    memory = bytearray(shape.size)
    io = PatchyIO({0x2000: memory}, arch)
    if shape.size:
        assert copy_struct_out(io, 0x2000, shape, *values) == shape.size
        assert memory == shape.pack(*values)
    assert copy_struct_in(io, 0x2000, shape) == values
    for k in range(shape.size):
        half = PatchyIO({0x3000 - k: bytearray(content[:k])}, arch)
        with pytest.raises(FaultError) as caught:
            copy_struct_in(half, 0x3000 - k, shape)
        fault = caught.value
        assert (fault.address, fault.transferred, fault.partial) == (0x3000, k, content[:k])
        with pytest.raises(FaultError) as caught:
            copy_struct_out(half, 0x3000 - k, shape, *values)
        assert (caught.value.transferred, caught.value.partial, linux_result(caught.value)) == (k, packed[:k], -14)


def test_values_that_fit_no_struct() -> None:
    """struct's own error, and nothing is written."""
    memory = bytearray(4)
    for values in ((70000,), (1, 2), ("text",)):
        with pytest.raises(struct.error):
            copy_struct_out(BytesIO(memory), 0, struct.Struct("<H"), *values)
    assert memory == bytes(4)


@each_arch
@pytest.mark.parametrize(("copy_in", "copy_out", "code"), INTS)
def test_in_an_address_space(arch: Arch, copy_in: In, copy_out: Out, code: str) -> None:
    """Over a page boundary, aligned or not, the first time and again; a fault past the mapping, and without a right."""
    number = layout(arch, code)
    page = arch.page_size
    flags = mman.MAP_PRIVATE | arch.map_flags.anonymous
    with AddressSpace(arch) as space:
        base = space.mmap(0, 2 * page, mman.PROT_READ | mman.PROT_WRITE, flags)
        value = extremes(number)[-1]
        for addr in [base + page - d for d in range(9)] + [base + 2 * page - number.size]:
            for _ in range(2):
                assert copy_out(space, addr, value) == number.size
                assert copy_in(space, addr) == value == copy_in(WatchedIO(space), addr)
                assert space.read_bytes(addr, number.size) == number.pack(value)
        with pytest.raises(FaultError) as caught:
            copy_in(space, base + 2 * page - number.size + 1)
        assert (caught.value.address, caught.value.transferred) == (base + 2 * page, number.size - 1)
        space.mprotect(base, page, mman.PROT_NONE)
        with pytest.raises(FaultError) as caught:
            copy_in(space, base)
        assert (caught.value.reason, caught.value.address) == (FaultReason.PERMISSION, base)
        with pytest.raises(FaultError) as caught:
            copy_out(space, base, value)
        assert (caught.value.reason, caught.value.address) == (FaultReason.PERMISSION, base)
        assert copy_out(space, base, value, ignore_permissions=True) == number.size
        assert copy_in(space, base, ignore_permissions=True) == value


@pytest.mark.parametrize("addr", [-1, -4, -4096, 1 << 64, 1 << 70, (1 << 64) - 1, 0x7FFF_FFFF_F000])
@pytest.mark.parametrize(("copy_in", "copy_out", "code"), INTS)
def test_any_int_is_an_address(copy_in: In, copy_out: Out, code: str, addr: int) -> None:
    """The worst it does is a FaultError at that address."""
    with AddressSpace() as space:
        steps: list[Callable[[], int]] = [lambda: copy_in(space, addr), lambda: copy_out(space, addr, 1)]
        for step in steps:
            with pytest.raises(FaultError) as caught:
                step()
            assert (caught.value.address, caught.value.transferred) == (addr, 0)


@given(
    arch=st.sampled_from(ARCHES),
    content=st.binary(min_size=24, max_size=24),
    code=st.sampled_from("BHIQiqP"),
    addr=st.integers(0, 16),
)
def test_any_bytes_are_the_number_struct_unpacks(arch: Arch, content: bytes, code: str, addr: int) -> None:
    """Whatever is in memory is read as ``struct`` reads it, by an IO's own method and by the plain one."""
    read = {parameter.values[2]: parameter.values[0] for parameter in INTS}[code]
    assert callable(read)
    number = layout(arch, code)
    expected = number.unpack_from(content, addr)[0]
    assert read(BytesIO(content, arch), addr) == expected
    assert copy_struct_in(BytesIO(content, arch), addr, number) == (expected,)
    with AddressSpace(arch) as space:
        page = arch.page_size
        base = space.mmap(0, page, mman.PROT_READ | mman.PROT_WRITE, mman.MAP_PRIVATE | arch.map_flags.anonymous)
        space.copy_out(base + page - 24, content)
        for _ in range(2):
            assert read(space, base + page - 24 + addr) == expected


class Broken(SimulatorFile):
    """Its code has a bug, the first time."""

    calls = 0

    def read_at(self, offset: int, dst: memoryview) -> int:
        """See MappedObject."""
        self.calls += 1
        if self.calls == 1:
            raise AttributeError("a bug of the simulator's")
        return super().read_at(offset, dst)


@pytest.mark.parametrize("name", ["copy_uint64_in", "copy_struct_in", "copy_uint32_in"])
def test_an_attribute_error_of_the_simulators_is_its_own(name: str) -> None:
    """It comes out, and the code is not run a second time."""
    broken = Broken(b"x" * 4096)
    calls: dict[str, Callable[[AddressSpace], object]] = {
        "copy_uint64_in": lambda space: copy_uint64_in(space, 0x10000),
        "copy_struct_in": lambda space: copy_struct_in(space, 0x10000, struct.Struct("<Q")),
        "copy_uint32_in": lambda space: copy_uint32_in(space, 0x10000),
    }
    with AddressSpace() as space:
        space.map_object(0x10000, 4096, mman.PROT_READ, mman.MAP_PRIVATE | mman.MAP_FIXED, broken)
        with pytest.raises(AttributeError, match="a bug of the simulator's"):
            calls[name](space)
    assert broken.calls == 1


@each_arch
@pytest.mark.parametrize(
    ("size", "behind", "expected"),
    [
        (0, b"", (0, 0)),
        (4, b"", (7, 0)),
        (6, b"", (7, 0x0908)),
        (12, b"", (7, 0x0B0A0908)),
        (20, bytes(8), (7, 0x0B0A0908)),
        (20, bytes(7) + b"x", "E2BIG"),
        (20, bytes(7), "EFAULT"),
        (20, bytes(6) + b"x", "E2BIG"),
        (12, None, "EFAULT"),
        (1 << 16 | 1, bytes(1 << 16), "E2BIG"),  # no machine's page is as long
    ],
)
def test_structs_with_a_size(arch: Arch, size: int, behind: bytes | None, expected: object) -> None:
    """A shorter struct is filled up with zeros, of a longer one only zeros may follow; a page is the most."""
    content = struct.pack("<IQ", 7, 0x0B0A0908)
    io = PatchyIO({0x1000: content[:-1] if behind is None else content + behind}, arch)
    try:
        found: object = copy_struct_from_user(io, 0x1000, size, struct.Struct("<IQ"))
    except OSError as exc:
        found = errno.errorcode[-linux_result(exc)]
    assert found == expected


def test_a_size_that_is_none() -> None:
    """A negative size is the caller's ValueError."""
    with pytest.raises(ValueError, match="size"):
        copy_struct_from_user(BytesIO(bytearray(9)), 0, -1, struct.Struct("<I"))


@pytest.mark.parametrize("readable", range(12))
def test_a_fault_in_a_struct_with_a_size(readable: int) -> None:
    """It tells where, and has all bytes before it, be they of the known part or behind that."""
    content = b"abcd".ljust(readable, b"\0")[:readable]
    with pytest.raises(FaultError) as caught:
        copy_struct_from_user(PatchyIO({0x1000: content}), 0x1000, 12, struct.Struct("<I"))
    fault = caught.value
    assert (fault.address, fault.transferred, fault.partial) == (0x1000 + readable, readable, content)
    assert linux_result(fault) == -errno.EFAULT
