"""A snapshot file made to do harm, with checksums that are right, is a clear error and costs nothing to speak of."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from campaign import times
from snapshot_samples import DATA, PAGE, SPACE, loaded, loaded_pages, pages, problem, put_together, take_apart
from usermem.mm.saved_space import PRIVATE, Behind
from usermem.mm.snapshot_file import SnapshotFileError, save

ROW = 82  # bytes of a mapping without its names


pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small file that is good."""
    save(tmp_path / "a", SPACE, pages())
    return tmp_path / "a"


def header(lengths: list[int], crcs: list[int] | None = None) -> bytes:
    raw = b"\x89usmem\r\n" + struct.pack("<I7Q6I", 1, *lengths, *(crcs or [zlib.crc32(b"")] * 6))
    return raw + struct.pack("<I", zlib.crc32(raw))


@pytest.mark.parametrize("part", range(7))
@pytest.mark.parametrize("length", [1, PAGE, 1 << 32, 1 << 40, (1 << 63) - 1, (1 << 64) - 1])
def test_hostile_lengths(tmp_path: Path, part: int, length: int) -> None:
    """Whatever length a header claims, also of a sparse file that has it, costs no memory to speak of."""
    raw = header([length if i == part else 0 for i in range(7)])
    (tmp_path / "a").write_bytes(raw.ljust(DATA, b"\0"))
    with contextlib.suppress(OSError, OverflowError):  # a host whose files are not that long
        os.truncate(tmp_path / "a", DATA + length)
    tracemalloc.start()
    try:
        problem(tmp_path / "a")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def forged(path: Path, **tables: bytes) -> str:
    """What is wrong with a file that has these tables, and checksums that are right."""
    raw = path.read_bytes()
    data, old = take_apart(path)
    put_together(path, data, {**old, **tables})
    try:
        return problem(path)
    finally:
        path.write_bytes(raw)


GOOD_META = {
    "arch": {"name": "x", "pointer_size": 8, "byte_order": "little", "max_addr": 1 << 47},
    "base": 0,
    "limits": {},
    "brk_start": 0,
    "brk": 0,
    "mlock_future": 0,
}


def meta(**changes: Any) -> bytes:
    return json.dumps({**GOOD_META, **changes}).encode()


def arch(**changes: Any) -> bytes:
    return meta(arch={**GOOD_META["arch"], **changes})  # type: ignore[dict-item]


HOSTILE_META = {
    "empty": b"",
    "no JSON": b"{",
    "not UTF-8": b'{"a": "\xff"}',
    "deep lists": b"[" * 60000,
    "deep objects": b'{"a":' * 12000,
    "too long": b" " * 70000 + meta(),
    "many": b"[" + b"[]," * 20000 + b"[]]",
    "a list": b"[]",
    "null": b"null",
    "a long number": b"1" * 60000,
    "a large number": meta(brk=10**4000),
    "a NaN": meta(brk=float("nan")),
    "infinite": meta(brk=float("inf")),
    "1e999": meta().replace(b'"brk": 0', b'"brk": 1e999'),
    "a float": meta(brk=0.0),
    "true": meta(brk=True),
    "text": meta(brk="0"),
    "a list in it": meta(brk=[]),
    "negative": meta(brk=-1),
    "no base": meta().replace(b'"base": 0, ', b""),
    "no arch name": meta(arch={"pointer_size": 8, "byte_order": "little", "max_addr": 1 << 47}),
    "unknown name": meta(more=1),
    "no limits": meta(limits=None),
    "a limit below 0": meta(limits={"max_map_count": -1}),
    "no limit": meta(limits={"max_map_count": None}),
    "a limit of text": meta(limits={"max_map_count": "1"}),
    "an unknown limit": meta(limits={"__class__": 1}),
    "mlock_future": meta(mlock_future=3),
    "base": meta(base=(1 << 47) + 1),
    "brk below its start": meta(brk_start=4096),
    "arch": meta(arch=[]),
    "an unknown arch field": arch(page_size=1),
    "a huge shift": arch(page_shift=1 << 60),
    "a shift of 10**4000": arch(huge_page_shift=10**4000),
    "a shift of 64": arch(cache_line_shift=64),
    "a small shift": arch(page_shift=3),
    "a negative shift": arch(cache_line_shift=-1),
    "pointers": arch(pointer_size=16),
    "byte order": arch(byte_order="middle"),
    "wide": arch(pointer_size=4),
    "max_addr": arch(max_addr=1 << 65),
    "map_flags": arch(map_flags=[]),
    "a map flag": arch(map_flags={"fixed": "1"}),
    "an unknown map flag": arch(map_flags={"a": 1}),
    "a bool": arch(ignores_top_byte=1),
    "a name": arch(name=None),
}


@pytest.mark.parametrize("raw", HOSTILE_META.values(), ids=HOSTILE_META)
def test_hostile_metadata(path: Path, raw: bytes) -> None:
    """Metadata of wrong types, depths, sizes and values is refused, though its checksum is right."""
    forged(path, metadata=raw)


def test_the_metadata_itself_is_good(path: Path) -> None:
    """What the others are changed from can be loaded."""
    data, tables = take_apart(path)
    put_together(path, data, {**tables, "metadata": meta()})
    with loaded(path) as found:
        assert found.saved.arch.name == "x"


def test_hostile_mappings(path: Path) -> None:
    """Mappings that overlap, wrap, are not in order or have what there is not."""
    good = SPACE.mappings
    first = good[0]
    changes: list[dict[str, Any]] = [
        {"start": first.end},
        {"start": 0x10001},
        {"end": first.end + PAGE},
        {"end": (1 << 64) - PAGE},
        {"start": 0x7FFFF000},
        {"prot": 8},
        {"max_prot": 255},
        {"mlock_mode": 3},
        {"shared": True},
        {"offset": PAGE},
        {"behind": Behind.SHARED, "number": 1},
        {"behind": Behind.OTHER, "offset": 1},
        {"behind": Behind.OTHER, "offset": (1 << 64) - PAGE},
        {"name_format": "{0.__class__}"},
        {"name_format": "{:>99999999999}"},
        {"name_format": "{}{}"},
    ]
    for change in changes:
        wrong = evolve(first, **change)
        with pytest.raises(ValueError, match="mapping"):
            save(path, evolve(SPACE, mappings=(wrong, *good[1:])), pages())
        with loaded(path) as found:  # a save that fails leaves the file
            assert found.saved == SPACE
    with pytest.raises(ValueError, match="too large"):
        save(path, evolve(SPACE, mappings=(evolve(first, inode=1 << 64), *good[1:])), pages())
    with pytest.raises(ValueError, match="too large"):
        save(path, evolve(SPACE, mappings=(evolve(first, name="n" * 65536), *good[1:])), pages())


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, struct.pack("<Q", (1 << 64) - PAGE)),
        (8, bytes(8)),
        (68, b"\xff"),
        (70, b"\2"),
        (71, b"\3"),
        (73, b"\1"),
        (74, b"\xff\xff"),
        (78, struct.pack("<I", (1 << 32) - 2)),
        (ROW, b"\xff"),
        (ROW + 11 + 70, b"\2"),  # the second mapping is shared
    ],
)
def test_hostile_mapping_bytes(path: Path, at: int, value: bytes) -> None:
    """A mapping's bytes that no writer writes."""
    table = take_apart(path)[1]["mappings"]
    forged(path, mappings=table[:at] + value + table[at + len(value) :])


def test_hostile_tables(path: Path) -> None:
    """Guards, memories and extents that are cut, empty, not in order, overlapping, elsewhere or too many."""
    data, tables = take_apart(path)
    assert len(data) == 4 * PAGE
    for name, row in (("mappings", ROW), ("guards", 16), ("memories", 8), ("extents", 24)):
        forged(path, **{name: tables[name][:-1]})
        forged(path, **{name: tables[name] + tables[name][: row - 1]})
        forged(path, **{name: tables[name] + tables[name][-row:]} if name != "memories" else {name: bytes(8)})
        forged(path, **{name: bytes(row * 3)})
        forged(path, **{name: b"\xff" * row * 3})
    forged(path, mappings=tables["mappings"] + tables["mappings"][-ROW - 9 :][: ROW - 1])
    forged(path, extents=tables["extents"][48:] + tables["extents"][:48])
    for guard in [(0x10000, 0x10001), (0x16000, 0x17000), (0x15000, 0x17000), (0x11000, 0x10000)]:
        forged(path, guards=struct.pack("<QQ", *guard))
    for extent in [
        (-2, 0, 4 * PAGE),
        (1, 0, 4 * PAGE),
        (PRIVATE, 0x14000, 0x16000),
        (PRIVATE, 0x30000, 0x34000),
        (PRIVATE, 0x10800, 0x14800),
        (PRIVATE, 0x7FFF4000, 0x7FFF9000),
        (0, 16 * PAGE, 20 * PAGE),
        (0, (1 << 64) - PAGE, 3 * PAGE),
        (0, 0, 3 * PAGE),
        (0, 0, 5 * PAGE),
        (0, PAGE, 1 << 62),
    ]:
        forged(path, extents=struct.pack("<qQQ", *extent))


def test_a_hostile_number_of_checksums(path: Path) -> None:
    """There is one for each block of the data."""
    data, tables = take_apart(path)
    for checksums in (b"", tables["checksums"][:-1], tables["checksums"] + b"\0", tables["checksums"] * 2):
        put_together(path, data, tables, checksums=checksums)
        problem(path)


@given(st.sampled_from(["mappings", "guards", "memories", "extents", "metadata"]), st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=times(120, 5000))
def test_any_tables(tmp_path: Path, name: str, data: st.DataObject) -> None:
    """Tables with any bytes in them, and right checksums, are refused, or hold a space that can be saved again."""
    path = tmp_path / "a"
    save(path, SPACE, pages())
    raw, tables = take_apart(path)
    table = bytearray(tables[name])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(table)))
        cut = data.draw(st.integers(0, 8))
        table[at : at + cut] = data.draw(st.binary(max_size=8) | st.binary(min_size=cut, max_size=cut))
    put_together(path, raw, {**tables, name: bytes(table)})
    try:
        with loaded(path) as found:
            save(tmp_path / "b", found.saved, loaded_pages(found))
    except SnapshotFileError:
        pass
