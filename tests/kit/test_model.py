"""The reference model answers as gVisor does: the recorded answers are replayed on it, under the same rules as ours.

So a test that compares something of ours with the model compares it with gVisor.
"""

from __future__ import annotations

import errno
import os
from typing import Any, Self

import pytest

from hostarch import AccessType, Arch
from safemem import Block
from usermem import FaultError, FaultReason, MappedObject
from usermem.testing import ModelBytes, ModelMemory
from vectors import replay_io
from vectors.deviations import expected_answer
from vectors.recorded import agrees, recordings
from vectors.replay import answer


class WrittenThrough(dict[int, int]):
    """A model's bytes, which are kept in a buffer too."""

    def __init__(self, buffer: bytearray) -> None:
        super().__init__(enumerate(buffer))
        self.buffer = buffer

    def __setitem__(self, addr: int, value: int) -> None:
        super().__setitem__(addr, value)
        self.buffer[addr] = value


class ModelBuffer(ModelBytes):
    """ModelBytes in the place of BytesIO."""

    def __init__(self, buffer: bytearray) -> None:
        super().__init__(bytes(buffer))
        self.bytes = WrittenThrough(buffer)


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


class ModelSpace(ModelMemory):
    """ModelMemory in the place of AddressSpace: the calls that the replay makes, with the checks of their arguments."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def map_object(
        self, addr: int, length: int, prot: int, flags: int, mapped: MappedObject | None, offset: int, max_prot: int
    ) -> int:
        self.map(addr, -(-length // 4096) * 4096, prot, max_prot, None if mapped is None else mapped.size())
        if mapped is not None:
            data = bytearray(mapped.size())
            mapped.read_at(0, memoryview(data))
            self.bytes.update({addr + i: value for i, value in enumerate(data) if value})
        return addr

    def munmap(self, addr: int, length: int) -> int:
        end = -(-(addr + length) // 4096) * 4096
        if addr % 4096 or length <= 0 or end > self.arch.max_addr:
            raise _error(errno.EINVAL)
        self.unmap(addr, end - addr)
        return 0

    def mprotect(self, addr: int, length: int, prot: int) -> int:
        if addr % 4096:
            raise _error(errno.EINVAL)
        if addr + length > 1 << 64:
            raise _error(errno.ENOMEM)
        self.protect(addr, length, prot)
        return 0

    def range_fault(self, addr: int, length: int, access: AccessType) -> FaultError | None:
        leaves = self.leaves_user_space(self.plain(addr), length)
        return FaultError(addr, access, FaultReason.OUTSIDE_RANGE) if leaves else None

    def resolve(
        self, addr: int, length: int, access: AccessType, *, ignore_permissions: bool = False
    ) -> tuple[list[Block], FaultError | None]:
        n, reason = self.reach(addr, length, access, ignore_permissions=ignore_permissions)
        return [Block(bytes(n))], None if reason is None else FaultError(addr + n, access, reason)


def test_the_model_answers_as_gvisor(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """All recorded operations on user memory, on the model."""
    monkeypatch.setattr(replay_io, "BytesIO", ModelBuffer)
    monkeypatch.setattr(replay_io, "AddressSpace", ModelSpace)
    total = 0
    wrong: list[Any] = []
    for number, vector in enumerate(recordings(pytestconfig.getoption("--vectors")), 1):
        req = vector["req"]
        if req["op"] not in ("bytesio", "mm") or "hang" in vector["res"]:
            continue
        total += 1
        expected, _ = expected_answer(req, vector["res"])
        ours = answer(req)
        if not agrees(expected, ours):
            wrong.append((number, req, expected, ours))
    assert total
    assert not wrong, f"{len(wrong)} of {total} differ: {wrong[:2]}"


def test_the_model_shares_no_code_with_what_it_judges() -> None:
    """It knows the words (the contract, errors, blocks, ranges) and none of the library's memories."""
    import ast
    import inspect

    from usermem.testing import model

    imported = {
        node.module for node in ast.walk(ast.parse(inspect.getsource(model))) if isinstance(node, ast.ImportFrom)
    }
    assert imported == {
        "__future__",
        "collections.abc",
        "typing",
        "_typeshed",
        "hostarch",
        "safemem",
        "usermem.errors",
        "usermem.memory_io",
    }


def test_the_model_of_another_machine() -> None:
    """Pages and words are the machine's."""
    from hostarch import ARM64_64K, MIPS

    def rights(arch: Arch) -> list[FaultReason | None]:
        model = ModelMemory(arch)
        model.map(0x10000, 0x10000, 1)
        return [model.reason(addr, AccessType(1)) for addr in (0xFFFF, 0x10000, 0x1FFFF, 0x20000)]

    assert rights(ARM64_64K) == [FaultReason.UNMAPPED, None, None, FaultReason.UNMAPPED]
    model = ModelMemory(MIPS)
    model.map(0x10000, 0x1000, 3)
    model.copy_out(0x10000, b"\0\0\1\2")
    assert model.swap_uint32(0x10000, 5) == 0x102
    read = bytearray(4)
    model.copy_in(0x10000, read)
    assert read == b"\0\0\0\5"
