"""The snapshot file: an address space and the bytes of its pages, for later processes and other machines.

All numbers are little-endian and unsigned, all tables without gaps. The file has eight parts, one after another::

    offset         bytes  what
    0                 96  the header:
                            0    8  magic: 89 75 73 6d 65 6d 0d 0a ("\\x89usmem\\r\\n")
                            8    4  version: 1
                           12   56  the lengths in bytes, 8 each, of data, metadata, mappings, guards, memories,
                                    extents and checksums
                           68   24  CRC-32s, 4 bytes each, of metadata, mappings, guards, memories, extents, checksums
                           92    4  CRC-32 of the 92 bytes before
    96             65440  zeros
    65536         length  data: the pages of the extents, one extent after another, in the order of the extents. A
                          page of zeros may be a hole of the file.
    then          length  metadata: a JSON object, at most 65536 bytes, with the fields of SavedSpace that are no
                          tables: base, brk_start, brk, mlock_future; arch and limits are objects with the fields of
                          hostarch.Arch that its constructor takes (map_flags too is an object) and of
                          usermem.mm.limits.Limits. Of these, what has a default may be missing.
    then          length  mappings, each of 82 bytes and three texts:
                            0   64  start, end, offset, guard, accessible (2**64 - 1: all), device, inode, number
                           64    4  fork
                           68    6  a byte each: prot, max_prot, shared, behind, mlock_mode, 0
                           74    4  the lengths in bytes, 2 each, of name and label
                           78    4  the length of name_format; 2**32 - 1: it is None, and has no bytes
                           82       name, label and name_format in UTF-8 (lone surrogates as if they were characters)
    then          length  guards, each of 16 bytes: start, end
    then          length  memories, each of 8 bytes: the length of a shared anonymous memory
    then          length  extents, each of 24 bytes: space (signed; -1: guest addresses, else the number of a memory),
                          start, end; ordered by space and start. They begin and end at multiples of 4096.
    then          length  checksums: the CRC-32, 4 bytes each, of the 64 KiB blocks of the data; the last may be shorter

The file ends there. All parts but header and data have at most 64 MiB, together. Data is aligned to 4096 bytes, and to
64 KiB where all extents are, so that extents can be mapped straight out of the file.

CRC-32 (zlib's) finds every error in up to 32 neighbouring bits, and others but for one in 2**32. It is 3 times as quick
as SHA-256, and 5 times as quick as BLAKE2b. It is no protection against forgery, so a reader checks each value as if it
were hostile.

Whatever is changed here, or in the fields of the metadata, makes another version.
"""

from __future__ import annotations

import errno
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from struct import Struct
from typing import TYPE_CHECKING, Final

from attrs import frozen

from safemem.buffers import readable_view
from usermem.mm.descriptor import Path
from usermem.mm.holes import next_data, next_hole
from usermem.mm.image import FileImage
from usermem.mm.replace_file import replacing
from usermem.mm.saved_space import PAGE, SavedExtent, SavedSpace
from usermem.mm.snapshot_tables import decode, encode

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

Source = Callable[[int, int], "ReadableBuffer"]
"""The bytes of [start, end), which lies in an extent: addresses or offsets in the extent's space."""

MAGIC: Final = b"\x89usmem\r\n"
VERSION: Final = 1
BLOCK: Final = 1 << 16
DATA: Final = 1 << 16
"""Where the data begins."""

_HEADER: Final = Struct("<8sI7Q6I")
_CRC: Final = Struct("<I")
_PADDING: Final = bytes(DATA - _HEADER.size - _CRC.size)
_PIECE: Final = 1 << 20  # read and written at a time
_ZEROS: Final = bytes(PAGE)
_ZERO_BLOCK: Final = _CRC.pack(zlib.crc32(bytes(BLOCK)))
_LONGEST_TABLES: Final = 1 << 26  # together, in bytes: a sparse file that claims more costs its maker nothing
_PARTS: Final = ("metadata", "mappings", "guards", "memories", "extents", "checksums")
_FOREIGN: Final = "give the path of a file that was saved as a snapshot"
_DAMAGED: Final = "copy it again from where it was saved, or save it anew"


class SnapshotFileError(ValueError):
    """A file that cannot be loaded: its ``path``, what the ``problem`` is, and what its owner can do: ``advice``."""

    def __init__(self, path: Path, problem: str, advice: str) -> None:
        super().__init__(path, problem, advice)
        self.path = path
        self.problem = problem
        self.advice = advice

    def __str__(self) -> str:
        return f"{os.fsdecode(self.path)!r}: {self.problem}; {self.advice}"


@frozen
class LoadedSpace:
    """What :func:`load` found. Extents have their offsets in the ``file``, which is open."""

    saved: SavedSpace
    extents: tuple[SavedExtent, ...]
    file: FileImage


def save(path: Path, saved: SavedSpace, pages: Iterable[tuple[SavedExtent, Source]]) -> None:
    """Write a snapshot file. Pages of zeros become holes. A source is asked for up to 1 MiB at a time.

    Raises ValueError if the values contradict each other (see saved_space.check) or are too many for the format, or
    if a source has not as many bytes as its extent; OSError if the host refuses. Until all is on the disk, the file
    at ``path`` stays what it was: see usermem.mm.replace_file.replacing.
    """
    pages = sorted(pages, key=lambda each: (each[0].space, each[0].start))
    tables = encode(saved, [extent for extent, _ in pages])
    with replacing(path) as fd:
        end = _write_data(fd, pages)
        tables.append(b"".join(_checksums(fd, end)))
        if sum(map(len, tables)) > _LONGEST_TABLES:
            raise ValueError("there are more mappings, extents or pages than a file can have")
        header = _HEADER.pack(MAGIC, VERSION, end - DATA, *map(len, tables), *map(zlib.crc32, tables))
        _write(fd, b"".join(tables), end)
        _write(fd, header + _CRC.pack(zlib.crc32(header)), 0)


def load(path: Path) -> LoadedSpace:
    """Read a snapshot file, after all of it was verified.

    Raises SnapshotFileError if it is none, damaged, truncated, of a newer version, or holds what no address space can
    be, and OSError if the host refuses; nothing stays open then. Memory and time are limited by the file's size.
    Whoever may change the file can do so later, too: :func:`save` never changes one, but replaces it.
    """
    file = _open(path)
    try:
        return LoadedSpace(*_verified(path, file.fd), file)
    finally:
        del file  # which the traceback of an error would keep open


def _open(path: Path) -> FileImage:
    """A regular file, open for reading. Nothing else is opened: that may wait, or set a device going."""
    try:
        _check_regular(path, os.stat(os.fspath(path)))  # noqa: PTH116 - pathlib is slow to load; no descriptors
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise SnapshotFileError(path, "its symlinks form a loop", _FOREIGN) from exc
        raise
    file = FileImage(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
    try:
        _check_regular(path, os.fstat(file.fd))  # another may have taken its place
        return file
    finally:
        del file


def _check_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise SnapshotFileError(path, "this is no regular file", _FOREIGN)


def _verified(path: Path, fd: int) -> tuple[SavedSpace, tuple[SavedExtent, ...]]:
    start = _read(fd, 12, 0)
    if not start or start[:8] != MAGIC[: len(start)]:
        raise SnapshotFileError(path, "this is no snapshot file" if start else "the file is empty", _FOREIGN)
    version = int.from_bytes(start[8:], "little")
    if len(start) == 12 and version > VERSION:
        problem = f"it has version {version} of the format, and this program reads version {VERSION}"
        raise SnapshotFileError(path, problem, "load it with the version of usermem that saved it, or a newer one")
    try:
        return _read_all(fd)
    except ValueError as exc:
        raise SnapshotFileError(path, str(exc), _DAMAGED) from exc


def _read_all(fd: int) -> tuple[SavedSpace, tuple[SavedExtent, ...]]:
    """Verify everything in the order in which one thing limits the next. Raises ValueError for what is wrong."""
    raw = _read_exactly(fd, _HEADER.size + _CRC.size, 0)
    if _CRC.pack(zlib.crc32(raw[: -_CRC.size])) != raw[-_CRC.size :]:
        raise ValueError("the header is damaged")
    _, version, data, *rest = _HEADER.unpack_from(raw)
    lengths, crcs = rest[: len(_PARTS)], rest[len(_PARTS) :]
    at, end = DATA + data, DATA + data + sum(lengths)
    if version != VERSION:
        raise ValueError(f"there is no version {version} of the format")
    _check_size(fd, end)
    if sum(lengths) > _LONGEST_TABLES or lengths[-1] != -(-data // BLOCK) * _CRC.size:
        raise ValueError("its tables are too long, or the checksums not those of the data")
    if _read_exactly(fd, len(_PADDING), len(raw)) != _PADDING:
        raise ValueError("the bytes between header and data are not zero")
    tables = []
    for name, length, crc in zip(_PARTS, lengths, crcs, strict=True):
        tables.append(_read_exactly(fd, length, at))
        at += length
        if zlib.crc32(tables[-1]) != crc:
            raise ValueError(f"the {name} are damaged")
    saved, extents = decode(tables[:-1], DATA)
    if sum(extent.end - extent.start for extent in extents) != data:
        raise ValueError("the extents are not as long as the data")
    _verify_data(fd, DATA + data, tables[-1])
    _check_size(fd, end)  # what was cut off meanwhile looked like a hole
    return saved, tuple(extents)


def _check_size(fd: int, end: int) -> None:
    size = os.fstat(fd).st_size
    if size != end:
        raise ValueError(f"it is truncated: {size} of {end} bytes" if size < end else f"it has {size - end} bytes more")


def _verify_data(fd: int, end: int, expected: bytes) -> None:
    """Raise ValueError, naming the block, if a checksum is not that of the data up to ``end``."""
    at = 0
    for found in _checksums(fd, end):
        part = expected[at : at + len(found)]
        if found != part:
            wrong = next(i for i in range(0, len(found), _CRC.size) if found[i : i + 4] != part[i : i + 4])
            start = DATA + (at + wrong) // _CRC.size * BLOCK
            raise ValueError(f"the data is damaged in the block of bytes {start} to {min(start + BLOCK, end) - 1}")
        at += len(found)


def _checksums(fd: int, end: int) -> Iterator[bytes]:
    """The table of checksums of the data up to ``end``, in parts. Holes are not read."""
    at = DATA
    while at < end:
        data = next_data(fd, at, end)
        holes = (data - at) // BLOCK
        if holes:
            holes = min(holes, _PIECE // BLOCK << 10)
            yield _ZERO_BLOCK * holes
            at += holes * BLOCK
            continue
        hole = max(next_hole(fd, data, end), data + 1)  # more than data, if it is a hole by now
        stop = min(-(-hole // BLOCK) * BLOCK, at + _PIECE, end)
        piece = memoryview(_read_exactly(fd, stop - at, at))
        yield b"".join(_CRC.pack(zlib.crc32(piece[i : i + BLOCK])) for i in range(0, len(piece), BLOCK))
        at += len(piece)


def _read(fd: int, length: int, at: int) -> bytes:
    """The bytes at ``at``; fewer than ``length`` where the file ends."""
    data = os.pread(fd, length, at)
    while len(data) < length and (more := os.pread(fd, length - len(data), at + len(data))):
        data += more
    return data


def _read_exactly(fd: int, length: int, at: int) -> bytes:
    data = _read(fd, length, at)
    if len(data) != length:
        raise ValueError(f"it is truncated: it ends at byte {at + len(data)}, before {at + length}")
    return data


def _write_data(fd: int, pages: Sequence[tuple[SavedExtent, Source]]) -> int:
    """Write the bytes of the extents, and return where they end."""
    at = DATA
    end = at + sum(extent.end - extent.start for extent, _ in pages)
    os.ftruncate(fd, end)
    for extent, source in pages:
        for start in range(extent.start, extent.end, _PIECE):
            stop = min(start + _PIECE, extent.end)
            piece = readable_view(source(start, stop), "pages")
            if len(piece) != stop - start:
                raise ValueError(f"the source of [{start:#x}, {stop:#x}) gave {len(piece):#x} bytes")
            _write_pages(fd, piece, at + start - extent.start)
        at += extent.end - extent.start
    return end


def _write_pages(fd: int, piece: memoryview, at: int) -> None:
    """Write what is not zero."""
    starts = range(0, len(piece), PAGE)
    data = piece.tobytes()  # whose slices are compared 40 times as quickly as a memoryview's
    for is_zero, group in groupby(starts, key=lambda start: data[start : start + PAGE] == _ZEROS):
        if not is_zero:
            run = list(group)
            _write(fd, data[run[0] : run[-1] + PAGE], at + run[0])


def _write(fd: int, data: ReadableBuffer, at: int) -> None:
    view = memoryview(data)
    while len(view):
        done = os.pwrite(fd, view, at)
        view = view[done:]
        at += done
