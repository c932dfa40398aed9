"""Memory that is not ours keeps the contract, as check_io asks for it; where it has no atomics it refuses them."""

from __future__ import annotations

import mmap
import time
from pathlib import Path

from core_writer import CoreFile, Load
from hostarch import ARM64, READ_WRITE
from other_process import OtherProcess
from usermem import IO, FaultError
from usermem.memories import FunctionIO, ProcessIO, open_core
from usermem.testing import Layout, Mapping, ModelMemory, check_io, conformance_layout

PAGE = mmap.PAGESIZE


def test_two_functions_make_the_contract() -> None:
    """Reads do all or nothing, write access is found by writing back, and the functions see no address with a tag."""
    layout = Layout(ARM64, (Mapping(0x10000, 2 * PAGE, READ_WRITE),))

    def make() -> tuple[IO, ModelMemory]:
        space = layout.address_space()

        def read(addr: int, n: int) -> bytes:
            assert ARM64.untagged(addr) == addr
            return space.read_bytes(addr, n)

        def write(addr: int, data: bytes) -> int:
            assert ARM64.untagged(addr) == addr
            return space.copy_out(addr, data)

        return FunctionIO(read, write, faults=FaultError, arch=ARM64), layout.model()

    check_io(make, atomics=False)


def test_a_process_keeps_the_contract() -> None:
    """All of it, in 10 seconds: rights, holes, the top of user space, and memory that can be written only."""
    layout = conformance_layout()

    def make() -> tuple[IO, ModelMemory]:
        io = ProcessIO(other.pid)
        for mapping in layout.mappings:
            io.zero_out(mapping.addr, mapping.length, ignore_permissions=True)
        return io, layout.model()

    with OtherProcess() as other:
        for mapping in layout.mappings:
            other.mmap(mapping.addr, mapping.length, int(mapping.prot))
        start = time.process_time()  # others may use the processor meanwhile
        check_io(make, atomics=False)
        assert time.process_time() - start < 10


def test_a_core_keeps_the_contract(tmp_path: Path) -> None:
    """It is never written; what was not dumped is beyond-file, and what can be written can be read."""
    content = bytes(1 + i * 7 % 251 for i in range(PAGE))
    loads = [Load(0x10000, 5, content), Load(0x11000, 0, content), Load(0x12000, 2, content, 2 * PAGE)]
    path = CoreFile(loads).write(tmp_path / "core")
    model = ModelMemory()  # one for all: nothing can be written
    for load in loads:
        prot = {5: 5, 0: 0, 2: 1}[load.flags]  # PF_R is 4 and PF_X 1
        model.map(load.addr, load.size, prot, 5, PAGE)
    for load in loads:
        model.bytes.update(enumerate(load.content, load.addr))
    check_io(lambda: (open_core(path), model))
