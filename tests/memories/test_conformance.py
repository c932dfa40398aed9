"""Memory that is not ours keeps the contract, as check_io asks for it; where it has no atomics it refuses them."""

from __future__ import annotations

import errno
import mmap
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from core_writer import CoreFile, Load
from hostarch import AMD64, ARM64, READ, READ_WRITE, WRITE, AccessType, Arch
from other_process import OtherProcess
from usermem import IO, FaultError, FaultReason
from usermem.memories import FunctionIO, ProcessIO, RemoteIO, open_core
from usermem.testing import Layout, Mapping, ModelMemory, check_io, conformance_layout

PAGE = mmap.PAGESIZE
LAYOUT = conformance_layout()
PLAIN = Layout(AMD64, (Mapping(0x10000, 2 * PAGE, READ_WRITE), Mapping(0x14000, PAGE, READ_WRITE)))


class OverSpace(RemoteIO):
    """An AddressSpace that is reached by calls. ``all_or_nothing`` ones move nothing where they cannot move all."""

    def __init__(self, layout: Layout, all_or_nothing: bool = False) -> None:
        super().__init__(layout.arch)
        self.space = layout.address_space()
        self.all_or_nothing = all_or_nothing

    def _reach(self, addr: int, length: int, access: AccessType, ignored: bool) -> tuple[int, FaultReason | None]:
        blocks, fault = self.space.resolve(addr, length, access, ignore_permissions=ignored)
        n = sum(map(len, blocks))
        return (0 if fault is not None and self.all_or_nothing else n), (None if fault is None else fault.reason)

    def read(self, addr: int, buffer: memoryview, *, ignore_permissions: bool = False) -> int:
        n, _ = self._reach(addr, len(buffer), READ, ignore_permissions)
        return self.space.copy_in(addr, buffer[:n], ignore_permissions=ignore_permissions)

    def write(self, addr: int, buffer: memoryview, *, ignore_permissions: bool = False) -> int:
        n, _ = self._reach(addr, len(buffer), WRITE, ignore_permissions)
        return self.space.copy_out(addr, buffer[:n], ignore_permissions=ignore_permissions)

    def writable(self, addr: int, length: int, *, ignore_permissions: bool = False) -> int:
        blocks, _ = self.space.resolve(addr, length, WRITE, ignore_permissions=ignore_permissions)
        return sum(map(len, blocks))

    def reason(self, addr: int, access: AccessType, *, ignore_permissions: bool = False) -> FaultReason:
        return self._reach(addr, 1, access, ignore_permissions)[1] or FaultReason.UNMAPPED

    def close(self) -> None:
        self.space.close()


@pytest.mark.parametrize(("arch", "all_or_nothing"), [(AMD64, False), (ARM64, True)])
def test_two_calls_make_the_contract(arch: Arch, all_or_nothing: bool) -> None:
    """Whether the calls move a prefix or nothing, and with tags on addresses."""
    layout = conformance_layout(arch)
    check_io(lambda: (OverSpace(layout, all_or_nothing), layout.model()), atomics=False)


def test_two_functions_make_the_contract() -> None:
    """With write access found by writing back, since nothing else is known of the memory."""

    def make() -> tuple[IO, ModelMemory]:
        space = PLAIN.address_space()
        return FunctionIO(space.read_bytes, space.copy_out, faults=FaultError), PLAIN.model()

    check_io(make, atomics=False)


@pytest.fixture(scope="module")
def other() -> Iterator[OtherProcess]:
    """A process with the mappings of the layout."""
    with OtherProcess() as child:
        for mapping in LAYOUT.mappings:
            child.mmap(mapping.addr, mapping.length, int(mapping.prot))
        yield child


def test_a_process_keeps_the_contract(other: OtherProcess) -> None:
    """All of it, in 10 seconds: rights, holes, the top of user space, and memory that can be written only."""

    def make() -> tuple[IO, ModelMemory]:
        io = ProcessIO(other.pid)
        for mapping in LAYOUT.mappings:
            io.zero_out(mapping.addr, mapping.length, ignore_permissions=True)
        return io, LAYOUT.model()

    start = time.monotonic()
    check_io(make, atomics=False)
    assert time.monotonic() - start < 10


def test_a_core_keeps_the_contract(tmp_path: Path) -> None:
    """It is never written; what was not dumped, or lies behind the end of the file, is beyond-file."""
    content = bytes(1 + i * 7 % 251 for i in range(2 * PAGE))
    loads = [
        Load(0x10000, 5, content),
        Load(0x12000, 0, content[:PAGE]),
        Load(0x13000, 6, b"", PAGE),
        Load(0x15000, 6, content[:PAGE]),
    ]
    path = CoreFile(loads).write(tmp_path / "core")

    def make() -> tuple[IO, ModelMemory]:
        model = ModelMemory()
        for load in loads:
            prot = {5: 5, 0: 0, 6: 1}[load.flags]  # PF_R is 4 and PF_X 1; nothing is written
            model.map(load.addr, load.size, prot, 5, None if load.content else 0)
            model.bytes.update(enumerate(load.content, load.addr))
        return open_core(path), model

    check_io(make)


def test_check_io_wants_atomics_refused() -> None:
    """Whoever has no atomics raises EOPNOTSUPP for each; a wrong value, or another error, is found."""

    class Pretends(OverSpace):
        def load_uint32(self, addr: int, *, ignore_permissions: bool = False) -> int:
            return 7

    class Wrong(OverSpace):
        def swap_uint32(self, addr: int, new: int, *, ignore_permissions: bool = False) -> int:
            raise OSError(errno.EINVAL, "no")

    def make(kind: type[OverSpace]) -> tuple[IO, ModelMemory]:
        return kind(PLAIN), PLAIN.model()

    for kind in (Pretends, Wrong):
        with pytest.raises(AssertionError, match="an IO without atomics refuses them"):
            check_io(partial(make, kind), atomics=False)
    with pytest.raises(AssertionError, match="load_uint32"):
        check_io(lambda: (OverSpace(PLAIN), PLAIN.model()))
