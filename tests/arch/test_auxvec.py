"""The types of auxiliary vectors, and the headers of all kernels that are installed here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hostarch import auxvec

HEADERS = [
    path
    for place in ("include", "include/*-linux-gnu", "*-linux-gnu*/include")
    for path in Path("/usr").glob(f"{place}/*/auxvec.h")
]


@pytest.mark.skipif(not HEADERS, reason="needs the kernel's headers")
def test_types() -> None:
    """All are there, with their numbers."""
    text = "".join(path.read_text() for path in HEADERS)
    found = {name: int(number) for name, number in re.findall(r"#define (AT_\w+)\s+(\d+)", text)}
    found.pop("AT_VECTOR_SIZE_ARCH", None)
    assert found.items() <= vars(auxvec).items()
    assert len(found) > 20
