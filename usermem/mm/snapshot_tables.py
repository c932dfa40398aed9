"""A SavedSpace as bytes, and back: the tables of a snapshot file, which usermem.mm.snapshot_file documents.

:func:`decode` trusts no byte. What it makes is no larger than a fixed multiple of what it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from struct import Struct, error
from typing import Any, Final

from attrs import NOTHING, AttrsInstance, asdict, fields, frozen

from hostarch import Arch
from hostarch.mman import MapFlags
from usermem.mm.limits import Limits
from usermem.mm.saved_space import Behind, SavedExtent, SavedMapping, SavedSpace, check

LONGEST_META: Final = 1 << 16
"""How long the metadata may be, in bytes."""

_MAPPING: Final = Struct("<8QI6B2HI")
_RANGE: Final = Struct("<QQ")
_LENGTH: Final = Struct("<Q")
_EXTENT: Final = Struct("<qQQ")
_NONE: Final = (1 << 64) - 1  # accessible: all
_NO_FORMAT: Final = (1 << 32) - 1  # the length of a name_format of None
_KINDS: Final = {
    "int": (int,),
    "int | None": (int, type(None)),
    "bool": (bool,),
    "str": (str,),
    "ByteOrder": (str,),
    "mman.MapFlags": (dict,),
    "Arch": (dict,),
    "Limits": (dict,),
}
"""The JSON types of a field, by its annotation."""


@frozen
class _Meta:
    """The metadata: the fields of SavedSpace that are no tables."""

    arch: Arch
    base: int
    limits: Limits
    brk_start: int
    brk: int
    mlock_future: int


def encode(saved: SavedSpace, extents: Sequence[SavedExtent]) -> list[bytes]:
    """The metadata, and the tables of mappings, guards, memories and extents.

    Raises ValueError if :func:`decode` would refuse them.
    """
    import json

    meta = _Meta(saved.arch, saved.base, saved.limits, saved.brk_start, saved.brk, saved.mlock_future)
    plain = asdict(meta, filter=lambda attribute, _: attribute.init)
    try:
        tables = [
            json.dumps(plain, allow_nan=False).encode(),
            b"".join(_encoded_mapping(each) for each in saved.mappings),
            b"".join(_RANGE.pack(*each) for each in saved.guards),
            b"".join(_LENGTH.pack(length) for length in saved.memories),
            b"".join(_EXTENT.pack(each.space, each.start, each.end) for each in extents),
        ]
    except error as exc:
        raise ValueError(f"a number is too large, or a name too long, for the file: {exc}") from None
    decode(tables, 0)
    return tables


def decode(tables: Sequence[bytes], data: int) -> tuple[SavedSpace, list[SavedExtent]]:
    """The values that :func:`encode` was given; the pages' bytes lie one after another from the offset ``data`` on.

    Raises ValueError if the tables are not what encode makes.
    """
    raw, mappings, guards, memories, rows = tables
    meta = _decoded_meta(raw)
    extents = []
    for space, start, end in _rows(_EXTENT, rows, "extents"):
        extents.append(SavedExtent(space, start, end, data))
        data += end - start
    saved = SavedSpace(
        **meta,
        mappings=tuple(_decoded_mappings(mappings)),
        guards=tuple(_rows(_RANGE, guards, "guards")),
        memories=tuple(length for (length,) in _rows(_LENGTH, memories, "memories")),
    )
    check(saved, extents)
    return saved, extents


def _encoded_mapping(each: SavedMapping) -> bytes:
    accessible = _NONE if each.accessible is None else each.accessible
    name, label, form = (
        (text or "").encode("utf-8", "surrogatepass") for text in (each.name, each.label, each.name_format)
    )
    fixed = _MAPPING.pack(
        *(each.start, each.end, each.offset, each.guard, accessible, each.device, each.inode, each.number),
        *(each.fork, each.prot, each.max_prot, each.shared, each.behind, each.mlock_mode, 0),
        *(len(name), len(label), _NO_FORMAT if each.name_format is None else len(form)),
    )
    return fixed + name + label + form


def _decoded_mappings(table: bytes) -> Iterator[SavedMapping]:
    at = last = 0
    while at < len(table):
        if len(table) - at < _MAPPING.size:
            raise ValueError("the table of mappings ends in the middle of one")
        start, end, offset, guard, accessible, device, inode, number, *rest = _MAPPING.unpack_from(table, at)
        fork, prot, max_prot, shared, behind, mlock_mode, zero, *lengths = rest
        if zero or shared > 1 or start < last:
            raise ValueError(f"the mapping at {start:#x} is out of order, or has a flag that there is not")
        last = end
        at += _MAPPING.size
        texts = []
        for length in lengths:
            stop = at + (0 if length == _NO_FORMAT else length)
            if stop > len(table):
                raise ValueError(f"the names of the mapping at {start:#x} are longer than the table")
            texts.append(table[at:stop].decode("utf-8", "surrogatepass"))
            at = stop
        yield SavedMapping(
            *(start, end, prot, max_prot, bool(shared), Behind(behind), number),
            *(None if accessible == _NONE else accessible, offset, guard, mlock_mode, fork, device, inode),
            *(texts[0], texts[1], None if lengths[2] == _NO_FORMAT else texts[2]),
        )


def _rows(row: Struct, table: bytes, name: str) -> Iterable[tuple[Any, ...]]:
    if len(table) % row.size:
        raise ValueError(f"the table of {name} ends in the middle of one")
    return row.iter_unpack(table)


def _decoded_meta(raw: bytes) -> dict[str, Any]:
    """The arguments of SavedSpace that are no tables. Raises ValueError if they are not what they must be."""
    import json

    if len(raw) > LONGEST_META:
        raise ValueError(f"the metadata has {len(raw)} bytes: more than {LONGEST_META}")
    try:
        meta = json.loads(raw)
    except RecursionError:
        raise ValueError("the metadata is nested too deep") from None
    values = _checked(_Meta, meta)
    return {**values, "arch": _decoded_arch(values["arch"]), "limits": Limits(**_checked(Limits, values["limits"]))}


def _decoded_arch(raw: dict[str, Any]) -> Arch:
    values = _checked(Arch, raw)
    flags = _checked(MapFlags, values.get("map_flags", {}))
    if not all(0 <= value <= 1 << 64 for value in (*values.values(), *flags.values()) if type(value) is int):
        raise ValueError("the machine has a number that is negative, or above 2**64")
    # Checked first: Arch computes the sizes from the shifts, however large.
    if any(value >= 64 for name, value in values.items() if name.endswith("_shift")):
        raise ValueError("the machine has a page, huge page or cache line of 2**64 bytes or more")
    if values["pointer_size"] not in (4, 8) or values["byte_order"] not in ("little", "big"):
        raise ValueError("the machine has a pointer_size other than 4 and 8, or a byte_order that there is not")
    if values["max_addr"] > 1 << 8 * values["pointer_size"]:
        raise ValueError("the machine has a max_addr that is wider than its pointers")
    return Arch(**{**values, "map_flags": MapFlags(**flags)})


def _checked(cls: type[AttrsInstance], raw: Any) -> dict[str, Any]:
    """A JSON object as keyword arguments of ``cls``; those that have a default may be missing, as in older files."""
    known = {each.name: each for each in fields(cls) if each.init}
    if type(raw) is not dict or not raw.keys() <= known.keys():
        raise ValueError(f"the metadata of {cls.__name__} is no object, or has a name that there is not")
    for name, each in known.items():
        if name not in raw and each.default is NOTHING:
            raise ValueError(f"the metadata of {cls.__name__} has no {name}")
        if name in raw and type(raw[name]) not in _KINDS[str(each.type)]:
            raise ValueError(f"{name} of {cls.__name__} is no {each.type} in the metadata")
    return raw
