"""SystemCall: which call is current, whatever interrupts, copies or outlives it; and how it is shown."""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from hostarch import AddrRange, AddrRangeSeq
from usermem import BytesIO
from usermem.observe import DoubleFetchDetector, SystemCall, TracingIO
from usermem.observe.system_call import current

METHODS = {SystemCall.__enter__.__code__, SystemCall.__exit__.__code__}


def interrupted_at(number: int) -> bool:
    """Whether a call is still current after an interrupt at a line of its own, if it has so many; else raises."""
    lines = iter(range(1000))
    raised = False

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal raised
        if frame.f_code not in METHODS:
            return None
        if event == "line" and not raised and next(lines) == number:
            raised = True
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with SystemCall("read"):
            pass
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    if not raised:
        raise LookupError
    return current() is not None


def test_an_interrupt_leaves_no_call_current() -> None:
    """But one before the first line of the end, where nothing could be done."""
    found = []
    with pytest.raises(LookupError):
        for number in range(100):
            found.append(contextvars.copy_context().run(interrupted_at, number))
    assert len(found) > 8
    assert sum(found) <= 1


def test_a_generator_that_goes_on_in_another_context() -> None:
    """Its call is over in the context where it began, too."""
    trace = TracingIO(BytesIO(bytearray(8)))

    def handler() -> Iterator[None]:
        with trace.call("read"):
            yield

    steps = handler()
    next(steps)
    assert current() is not None
    contextvars.copy_context().run(lambda: list(steps))
    assert current() is None
    trace.copy_in(0, bytearray(4))
    assert trace.accesses[-1].tag is None


def test_a_task_that_outlives_its_call_is_in_none() -> None:
    """What it fetches later is no second fetch of the call."""
    detector = DoubleFetchDetector(BytesIO(bytearray(8)))

    async def later() -> None:
        for _ in range(2):
            detector.copy_in(0, bytearray(4))
            await asyncio.sleep(0)

    async def handler() -> None:
        with detector.call("io_submit"):
            task = asyncio.create_task(later())
        await task

    asyncio.run(handler())
    assert not detector.findings


def test_a_call_in_itself_ends_once_for_each() -> None:
    """The outer one is still current."""
    with SystemCall("outer") as outer:
        with SystemCall("inner") as inner, inner:
            assert current() is inner
        assert current() is outer
    assert current() is None


class Hostile:
    """Nothing to be shown."""

    def __repr__(self) -> str:
        raise LookupError


def test_arguments_are_shown_in_short() -> None:
    """Long ones are cut, as strace(1) cuts strings; what has no repr is named."""
    assert len(str(SystemCall("write", (1, b"x" * 100_000, 100_000)))) < 100
    assert "Hostile" in str(SystemCall("write", (Hostile(),)))


@pytest.mark.parametrize("option", ["reads", "writes", "refetches"])
def test_ranges_are_checked(option: str) -> None:
    """At once, by name."""
    with pytest.raises(TypeError, match=f"{option} must be an AddrRangeSeq, not list"):
        SystemCall("read", **{option: [AddrRange(0, 8)]})  # type: ignore[arg-type]
    SystemCall("read", **{option: AddrRangeSeq()})  # type: ignore[arg-type]
