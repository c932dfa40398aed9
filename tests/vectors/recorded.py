"""Recorded answers of gVisor: how they are read and compared, and where a test leaves what it compared."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

OPEN = Path(__file__).with_name("open.jsonl.gz")
HANGS = Path(__file__).with_name("hangs.jsonl")
SUMMARY = pytest.StashKey[list[str]]()


def recordings(file: Path) -> Iterator[dict[str, Any]]:
    """The recordings of a file, .jsonl or .jsonl.gz, one after another: each a request and its answer."""
    with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as lines:
        for line in lines:
            yield json.loads(line)


def agrees(recorded: Any, ours: Any) -> bool:
    """Every field of the recording is in ours and equal; a panic is a panic, whatever its text."""
    if isinstance(recorded, dict):
        if "panic" in recorded:
            return isinstance(ours, dict) and "panic" in ours
        return isinstance(ours, dict) and all(k in ours and agrees(v, ours[k]) for k, v in recorded.items())
    if isinstance(recorded, list):
        return isinstance(ours, list) and len(recorded) == len(ours) and all(map(agrees, recorded, ours))
    return type(recorded) is type(ours) and bool(recorded == ours)
