"""Snapshot files for tests: a small space with all kinds of mappings, and files made by hand of given tables.

Files are made here by the description of the format alone, so that they also test what the package writes.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from hostarch import AMD64
from usermem.mm.image import read_whole
from usermem.mm.limits import Limits
from usermem.mm.saved_space import PRIVATE, Behind, SavedExtent, SavedMapping, SavedSpace
from usermem.mm.snapshot_file import LoadedSpace, SnapshotFileError, Source, load

PAGE = 4096
DATA = 65536
TABLES = ("metadata", "mappings", "guards", "memories", "extents", "checksums")

SPACE = SavedSpace(
    arch=AMD64,
    base=0x7FFF_F7FF_F000,
    limits=Limits(data_limit=1 << 30),
    mappings=(
        SavedMapping(0x10000, 0x14000, 3, 7, False, Behind.ANONYMOUS, mlock_mode=1, fork=2, name="[anon:heap]"),
        SavedMapping(0x14000, 0x16000, 1, 3, True, Behind.SHARED, label="/dev/zero (deleted)", device=1, inode=7),
        SavedMapping(0x20000, 0x22000, 5, 7, False, Behind.OTHER, 3, 5000, 0x3000, label="/usr/bin/\udcffé"),
        SavedMapping(0x7FFF0000, 0x7FFF8000, 3, 7, False, Behind.ANONYMOUS, guard=1 << 20, name_format="[anon:{}]"),
    ),
    guards=((0x12000, 0x13000), (0x7FFF0000, 0x7FFF1000)),
    memories=(5000,),
    brk_start=0x10000,
    brk=0x10123,
    mlock_future=2,
)

EXTENTS = (
    SavedExtent(PRIVATE, 0x10000, 0x11000),
    SavedExtent(PRIVATE, 0x20000, 0x22000),
    SavedExtent(0, PAGE, 2 * PAGE),
)


def page_bytes(start: int, end: int) -> bytes:
    """Bytes that differ from page to page; every fourth page is zero."""
    pages = range(start // PAGE, end // PAGE)
    return b"".join(bytes(PAGE) if page % 4 == 1 else page.to_bytes(8, "big") * (PAGE // 8) for page in pages)


def pages(
    extents: Sequence[SavedExtent] = EXTENTS, source: Callable[[int, int], bytes] = page_bytes
) -> list[tuple[SavedExtent, Source]]:
    """The extents with a source."""
    return [(extent, source) for extent in extents]


@contextmanager
def loaded(path: str | bytes | os.PathLike[str]) -> Iterator[LoadedSpace]:
    """A file while it is loaded."""
    yield load(path)


def loaded_pages(found: LoadedSpace) -> list[tuple[SavedExtent, Source]]:
    """The extents of a loaded file with their bytes, to be saved again."""

    def source(extent: SavedExtent) -> Source:
        return lambda start, end: read_whole(found.file, extent.offset + start - extent.start, end - start)

    return [(extent, source(extent)) for extent in found.extents]


def contents(found: LoadedSpace) -> dict[tuple[int, int, int], bytes]:
    """The bytes of each extent."""
    return {
        (each.space, each.start, each.end): os.pread(found.file.fd, each.end - each.start, each.offset)
        for each in found.extents
    }


def problem(path: Path | str) -> str:
    """What is wrong with a file, as its error says it."""
    with pytest.raises(SnapshotFileError) as caught:
        load(path)
    assert repr(os.fspath(path)) in str(caught.value)
    assert caught.value.problem in str(caught.value)
    assert caught.value.advice in str(caught.value)
    return caught.value.problem


def names(directory: Path) -> list[str]:
    """What lies in a directory."""
    return sorted(each.name for each in directory.iterdir())


def take_apart(path: Path) -> tuple[bytes, dict[str, bytes]]:
    """The data of a file, and its tables by their names."""
    raw = path.read_bytes()
    lengths = struct.unpack_from("<7Q", raw, 12)
    at = DATA + lengths[0]
    tables = {}
    for name, length in zip(TABLES, lengths[1:], strict=True):
        tables[name] = raw[at : at + length]
        at += length
    assert at == len(raw)
    return raw[DATA : DATA + lengths[0]], tables


def put_together(
    path: Path, data: bytes, tables: dict[str, bytes], version: int = 1, checksums: bytes | None = None
) -> None:
    """Write a file of data and tables with checksums that are right, whatever the tables say."""
    blocks = [data[at : at + 65536] for at in range(0, len(data), 65536)]
    right = struct.pack(f"<{len(blocks)}I", *map(zlib.crc32, blocks))
    tables = {**tables, "checksums": right if checksums is None else checksums}
    parts = [tables[name] for name in TABLES]
    header = b"\x89usmem\r\n" + struct.pack("<I7Q", version, len(data), *map(len, parts))
    header += struct.pack("<6I", *map(zlib.crc32, parts))
    header += struct.pack("<I", zlib.crc32(header))
    path.write_bytes(header.ljust(DATA, b"\0") + data + b"".join(parts))
