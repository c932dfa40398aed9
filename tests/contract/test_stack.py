"""build_stack: the tables of every machine, memory that is given, and errors that leave all as it was."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve

import hostarch
from each_line import Event, interrupt
from hostarch import AMD64, MIPS, Arch, auxvec, mman
from integer_kinds import KINDS, kind_of
from patchy_io import PatchyIO
from usermem import AddressSpace, BytesIO, FaultError, FaultReason, Stack, build_stack
from usermem import stack as stack_module

ARCHES = [value for value in vars(hostarch).values() if isinstance(value, Arch)]
PAGE = 4096
RW = mman.PROT_READ | mman.PROT_WRITE
with_arches = pytest.mark.parametrize("arch", ARCHES, ids=lambda arch: arch.name)
AUXV: list[tuple[int, Any]] = [
    (auxvec.AT_PAGESZ, 4096),
    (auxvec.AT_RANDOM, bytes(range(16))),
    (auxvec.AT_EXECFN, "./program"),
    (auxvec.AT_PLATFORM, b"cpu"),
    (auxvec.AT_BASE_PLATFORM, b"basecpu"),
    (auxvec.AT_ENTRY, 0x1234),
]


def words(space: AddressSpace, addr: int, count: int) -> list[int]:
    """Words of the guest."""
    size = space.arch.pointer_size
    data = space.read_bytes(addr, count * size)
    return [int.from_bytes(data[i : i + size], space.arch.byte_order) for i in range(0, len(data), size)]


def string(space: AddressSpace, addr: int) -> bytes:
    """A string of the guest."""
    return space.copy_string_in(addr, 4096)


@with_arches
def test_tables(arch: Arch) -> None:
    """A program that walks up from its stack pointer finds everything, in its own words."""
    with AddressSpace(arch) as space:
        stack = build_stack(space, ["prog", b"", "\u00e9"], [b"A=1", "B="], AUXV)
        assert stack.pointer % 16 == 0
        found = words(space, stack.pointer, 1 + 4 + 3 + 2 * (len(AUXV) + 1))
        assert found[0] == 3
        assert [string(space, addr) for addr in found[1:4]] == [b"prog", b"", "\u00e9".encode()]
        assert [string(space, addr) for addr in found[5:7]] == [b"A=1", b"B="]
        assert found[4] == found[7] == 0
        word = arch.pointer_size
        assert (stack.argv, stack.envp, stack.auxv) == tuple(stack.pointer + word * i for i in (1, 5, 8))
        assert (stack.arg_start, stack.env_start) == (found[1], found[5])
        assert stack.env_end == found[6] + 3
        pairs = list(zip(found[8::2], found[9::2], strict=True))
        assert [kind for kind, _ in pairs] == [kind for kind, _ in AUXV] + [auxvec.AT_NULL]
        values = dict(pairs)
        assert (values[auxvec.AT_PAGESZ], values[auxvec.AT_ENTRY], values[auxvec.AT_NULL]) == (4096, 0x1234, 0)
        assert space.read_bytes(values[auxvec.AT_RANDOM], 16) == bytes(range(16))
        assert string(space, values[auxvec.AT_PLATFORM]) == b"cpu"
        assert string(space, values[auxvec.AT_BASE_PLATFORM]) == b"basecpu"
        assert values[auxvec.AT_EXECFN] == stack.env_end
        assert space.read_bytes(stack.env_end, stack.top - stack.env_end) == b"./program" + bytes(1 + word)


@pytest.mark.parametrize("arch", [*ARCHES, evolve(MIPS, name="mips-malta")], ids=lambda arch: arch.name)
def test_where_strings_are_aligned(arch: Arch) -> None:
    """AT_RANDOM's bytes lie right below the strings, aligned as by the machine's arch_align_stack()."""
    align = {"mips": 8, "mipsel": 8, "riscv64": 1}.get(arch.family, 16)
    with AddressSpace(arch) as space:
        stack = build_stack(space, ["a", "bb"], [], [(auxvec.AT_RANDOM, bytes(16))])
        assert words(space, stack.auxv, 2)[1] == stack.arg_start - stack.arg_start % align - 16


@with_arches
def test_the_mapping(arch: Arch) -> None:
    """It ends where user space does, has 128 KiB below the strings, and grows when it is touched below."""
    with AddressSpace(arch) as space:
        stack = build_stack(space, ["prog"], [], [], prot=RW | mman.PROT_EXEC)
        (vma,) = space.mappings()
        assert (vma.start, vma.end) == (stack.top - arch.page_size - 131072, stack.top)
        assert (vma.prot, vma.growsdown, vma.name) == (7, True, "[stack]")
        assert stack.top == arch.page_round_down(arch.max_addr)
        space.copy_out(vma.start - 8, b"deeper")
        assert space.mappings()[0].start < vma.start


def test_no_arguments() -> None:
    """There is one argument then, an empty one."""
    with AddressSpace() as space:
        stack = build_stack(space, [], [], [])
        assert words(space, stack.pointer, 6)[0] == 1
        assert string(space, words(space, stack.argv, 1)[0]) == b""


def test_memory_that_is_given() -> None:
    """Any IO will do, at any address; it is the same stack, moved."""
    with AddressSpace() as space:
        ours = build_stack(space, ["a", "b"], ["c=d"], AUXV, top=None)
        size = ours.top - ours.pointer
        memory = bytearray(b"\xee" * 4096)
        stack = build_stack(BytesIO(memory), ["a", "b"], ["c=d"], AUXV, top=4000)
        assert stack.top == 4000
        assert memory[: stack.pointer] == b"\xee" * stack.pointer
        assert memory[4000:] == b"\xee" * 96
        assert memory[stack.arg_start : 4000] == space.read_bytes(ours.arg_start, ours.top - ours.arg_start)
        assert abs(4000 - stack.pointer - size) < 32


def test_a_stack_that_grows_is_given() -> None:
    """A mapping of one page grows to what is stored."""
    with AddressSpace() as space:
        flags = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_GROWSDOWN
        start = space.mmap(0x7000_0000, PAGE, RW, flags)
        stack = build_stack(space, ["x" * 10_000], [], [], top=start + PAGE)
        assert space.mappings()[0].start == stack.pointer & -PAGE
        assert space.read_bytes(stack.arg_start, 3) == b"xxx"


@pytest.mark.parametrize("hole", ["below", "middle"])
def test_a_hole_changes_nothing(hole: str) -> None:
    """Where some of the memory is missing, nothing is stored in the rest."""
    high = bytearray(b"\xee" * PAGE)
    low = bytearray(b"\xee" * PAGE)
    pieces: dict[int, Any] = {3 * PAGE: high}
    if hole == "middle":
        pieces[PAGE] = low
    with pytest.raises(FaultError) as caught:
        build_stack(PatchyIO(pieces), ["x" * 9000], [], [], top=4 * PAGE)
    assert caught.value.reason is FaultReason.UNMAPPED
    assert caught.value.transferred == 0
    assert caught.value.address == (2 * PAGE if hole == "middle" else caught.value.address)
    assert high == low == b"\xee" * PAGE


@pytest.mark.parametrize("top", [0, 1, -1, 1 << 64, 1 << 70, 0x7FFF_FFFF_F001])
def test_any_top(top: int) -> None:
    """Any int is an address, and a fault the worst."""
    with AddressSpace() as space, pytest.raises(FaultError):
        build_stack(space, ["a"], [], AUXV, top=top)


BAD: list[tuple[type[Exception], list[Any], list[Any], list[Any]]] = [
    (ValueError, [b"a\0b"], [], []),
    (ValueError, [b"a"], [b"A=\0"], []),
    (ValueError, [b"a"], [], [(auxvec.AT_RANDOM, bytes(15))]),
    (ValueError, [b"a"], [], [(auxvec.AT_RANDOM, "r" * 16)]),
    (ValueError, [b"a"], [], [(auxvec.AT_PAGESZ, b"4096")]),
    (ValueError, [b"a"], [], [(auxvec.AT_PLATFORM, b"a"), (auxvec.AT_PLATFORM, b"b")]),
    (OverflowError, [b"a"], [], [(auxvec.AT_HWCAP, 1 << 64)]),
    (OverflowError, [b"a"], [], [(auxvec.AT_HWCAP, -1)]),
    (TypeError, [b"a"], [], [(auxvec.AT_HWCAP, 1.0)]),
    (TypeError, [b"a"], [], [(None, 1)]),
    (TypeError, [1], [], []),
    (TypeError, [b"a"], [None], []),
]


@pytest.mark.parametrize(("error", "argv", "envp", "auxv"), BAD)
def test_bad_arguments(error: type[Exception], argv: list[Any], envp: list[Any], auxv: list[Any]) -> None:
    """What cannot be laid out; nothing is mapped then."""
    with AddressSpace() as space:
        with pytest.raises(error):
            build_stack(space, argv, envp, auxv)
        assert not space.mappings()


def test_what_is_in_the_way() -> None:
    """The end of user space is taken: nothing changes. Memory that is given needs no mapping."""
    arch = evolve(AMD64, max_addr=1 << 30)
    with AddressSpace(arch) as space:
        flags = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED
        space.mmap(arch.max_addr - 2 * PAGE, 2 * PAGE, RW, flags)
        with pytest.raises(FileExistsError):
            build_stack(space, ["a"], [], [])
        assert len(space.mappings()) == 1
        assert build_stack(space, ["a"], [], [], top=arch.max_addr).top == arch.max_addr
    with pytest.raises(TypeError):
        build_stack(BytesIO(bytearray(4096)), ["a"], [], [])


def test_no_memory_for_what_is_stored() -> None:
    """The mapping is taken back if the bytes cannot be stored."""

    class Full(AddressSpace):
        def copy_out(self, addr: int, src: Any, ignore_permissions: bool = False) -> int:
            raise MemoryError

    with Full() as space:
        with pytest.raises(MemoryError):
            build_stack(space, ["a"], [], [])
        assert not space.mappings()


def test_a_stack_without_rights() -> None:
    """The tables are stored whatever the rights are, as the kernel's are."""
    with AddressSpace() as space:
        stack: Stack = build_stack(space, ["a"], [], [], prot=mman.PROT_READ)
        assert words(space, stack.pointer, 1) == [1]


def test_a_user_space_that_is_too_small() -> None:
    """The error is that of the mapping."""
    with AddressSpace(evolve(AMD64, max_addr=0x20000)) as space, pytest.raises(OSError, match=" mmap of "):
        build_stack(space, ["a"], [], [])


@pytest.mark.parametrize("name", KINDS)
def test_integers_of_all_kinds(name: str) -> None:
    """Types, values and addresses may be any integers."""
    i = kind_of(name)
    memory, same = bytearray(120), bytearray(120)
    build_stack(BytesIO(memory), ["a"], [], [(i(6), i(127))], top=i(120))
    build_stack(BytesIO(same), ["a"], [], [(6, 127)], top=120)
    assert memory == same


@pytest.mark.parametrize("taken", [False, True])
def test_interrupts(taken: bool) -> None:
    """Wherever a handler raises, the stack is there and was returned, or is not there; and what was there before is."""
    at = 0
    while True:
        at += 1
        with AddressSpace() as space:
            before = build_stack(space, ["a"], [], []) if taken else None
            event = Event([stack_module], at, interrupt, between=True)
            try:
                event.during(lambda space=space: build_stack(space, ["b"], [], []))  # type: ignore[misc]
            except (KeyboardInterrupt, FileExistsError):
                assert bool(space.mappings()) == taken, event.where
            if before is not None:
                assert string(space, words(space, before.argv, 1)[0]) == b"a"
            if not event.where:
                break
    assert at > 30
