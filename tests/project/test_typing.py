"""What the types promise: mypy --strict checks the annotations here, and pytest that the values are of those types."""

from __future__ import annotations

import io
from typing import assert_type

from hostarch import AMD64, AddrRange, AddrRangeSeq, mman
from safemem import Block, BlockSeq, BlockSeqReader, BlockSeqWriter, FDReader, FDWriter, FromIOReader, Reader, Writer
from usermem import (
    IO,
    AddressSpace,
    BytesIO,
    IOReadWriter,
    IOSequence,
    MappedObject,
    copy_in_vec,
    copy_string_in,
    copy_uint32_in,
    linux_result,
)


def test_our_classes_fulfil_the_protocols() -> None:
    """Every IO, Reader and Writer of ours is assignable to the Protocol, and has its methods."""
    ios: list[IO] = [AddressSpace(AMD64), BytesIO(bytearray(8))]
    readers: list[Reader] = [BlockSeqReader(BlockSeq()), FDReader(0), FromIOReader(io.BytesIO())]
    writers: list[Writer] = [BlockSeqWriter(BlockSeq()), FDWriter(1)]
    methods = [name for name in vars(IO) if not name.startswith("_")]
    assert len(methods) == 8
    for one in ios:
        assert all(callable(getattr(one, name)) for name in methods)
    assert all(callable(reader.read_to_blocks) for reader in readers)
    assert all(callable(writer.write_from_blocks) for writer in writers)


def test_results_have_the_types_they_are_annotated_with() -> None:
    """assert_type is checked by mypy; isinstance here."""
    space = AddressSpace()
    addr = assert_type(space.mmap(0, 4096, mman.PROT_READ | mman.PROT_WRITE, 0x22), int)
    assert isinstance(assert_type(space.read_bytes(addr, 4), bytes), bytes)
    assert isinstance(assert_type(copy_string_in(space, addr, 4), bytes), bytes)
    assert isinstance(assert_type(copy_uint32_in(space, addr), int), int)
    ars = AddrRangeSeq([AddrRange(addr, addr + 2)])
    assert assert_type(copy_in_vec(space, ars, bytearray(2)), int) == 2
    assert isinstance(assert_type(linux_result(0), int), int)
    assert isinstance(assert_type(IOSequence(space, ars).num_bytes, int), int)
    raw: io.RawIOBase = IOReadWriter(space, addr)
    assert raw.readable()
    assert isinstance(assert_type(space.blocks(ars), BlockSeq).head(), Block)


def test_an_object_of_a_simulator_can_be_mapped() -> None:
    """MappedObject is structural."""

    class File:
        def size(self) -> int:
            return 3

        def read_at(self, offset: int, dst: memoryview) -> int:
            dst[:3] = b"abc"
            return 3

    file: MappedObject = File()
    with AddressSpace() as space:
        addr = space.map_object(0, 4096, mman.PROT_READ, mman.MAP_PRIVATE, file)
        assert space.read_bytes(addr, 4) == b"abc\0"
