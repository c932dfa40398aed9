"""A signal handler that raises in the middle leaves an engine that has what the space has."""

from __future__ import annotations

from contextlib import suppress

import pytest

from cpu import CPU, FIXED, PAGE, RW, RWX, unicorn, what
from each_line import Event, interrupt
from hostarch import READ, WRITE, mman
from usermem import AddressSpace
from usermem.unicorn import SharedEngine, regions, share, shared_engine

BASE = 0x1000_0000


@pytest.mark.parametrize("eager", [False, True])
def test_interrupts(eager: bool) -> None:
    """At any place where a signal handler may raise: afterwards the CPU has what the space has, no more and no less."""
    at, lines = 0, 1
    while at <= lines:
        with AddressSpace() as space:
            cpu = CPU(space, eager=eager)
            space.mmap(BASE, 8 * PAGE, RWX, FIXED)
            assert cpu.load(BASE) == 0
            event = Event([regions, shared_engine], at, interrupt, between=True)
            with suppress(KeyboardInterrupt):
                event.during(lambda: _change(cpu))  # noqa: B023
            lines = max(lines, event.lines)
            if "def _changed" not in event.where:  # the listener has not begun
                for page in range(10):
                    addr = BASE + page * PAGE
                    fault = space.resolve(addr, 1, WRITE)[1]
                    assert what(cpu.store(addr, page + 1)) == what(fault), event.where
                    fault = space.resolve(addr, 1, READ)[1]
                    assert what(cpu.load(addr)) == (what(fault) or space.read_bytes(addr, 1)[0]), event.where
            cpu.shared.close()
            assert list(cpu.uc.mem_regions()) == []
        at += 1


def test_interrupts_of_share() -> None:
    """The space and the engine are as before then, and may be shared again."""
    at, lines = 0, 1
    with AddressSpace() as space:
        space.mmap(BASE, PAGE, RWX, FIXED)
        while at <= lines:
            uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
            made: list[SharedEngine] = []
            event = Event([regions, shared_engine], at, interrupt, between=True)
            with suppress(KeyboardInterrupt):
                event.during(lambda: made.append(share(uc, space, eager=True)))  # noqa: B023
            lines = max(lines, event.lines)
            for each in made:
                each.close()
            assert space.on_change is None, event.where
            assert space.on_code_write is None, event.where
            assert list(uc.mem_regions()) == []
            share(uc, space).close()
            at += 1


def _change(cpu: CPU) -> None:
    """Changes of each kind, and what they make the engine do."""
    space = cpu.space
    space.mprotect(BASE + PAGE, PAGE, mman.PROT_READ)
    space.munmap(BASE + 3 * PAGE, PAGE)
    space.mmap(BASE + 3 * PAGE, 4 * PAGE, RW, FIXED)
    assert cpu.store(BASE + 3 * PAGE, 9) is None
    space.copy_out(BASE, b"code")
    space.mprotect(BASE + PAGE, PAGE, RWX)
    space.mremap(BASE + 4 * PAGE, PAGE, PAGE, mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED, BASE + 9 * PAGE)
    space.munmap(BASE + 7 * PAGE, PAGE)
