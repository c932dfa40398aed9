"""The reference model answers as gVisor does: the recorded answers are replayed on it, under the same rules as ours.

So a test that compares something of ours with the model compares it with gVisor.
"""

from __future__ import annotations

from typing import Any

import pytest

from hostarch import AccessType, Arch
from usermem import FaultReason
from usermem.testing import ModelMemory
from vectors import replay_io
from vectors.deviations import expected_answer
from vectors.model_space import GrowingSpace, ModelBuffer
from vectors.recorded import agrees, recordings
from vectors.replay import answer


def test_the_model_answers_as_gvisor(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """All recorded operations on user memory, on the model."""
    monkeypatch.setattr(replay_io, "BytesIO", ModelBuffer)
    monkeypatch.setattr(replay_io, "AddressSpace", GrowingSpace)
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
        "safemem.buffers",  # what a caller passes, checked
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
