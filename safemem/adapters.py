"""Python's streams as Readers and Writers.

``FromIOReader`` and ``FromIOWriter`` wrap binary file objects, ``FromVecReaderFunc`` and ``FromVecWriterFunc`` wrap
functions over a list of buffers, ``BlockSeqReader`` and ``BlockSeqWriter`` move from and to blocks. File descriptors
are in :mod:`safemem.fd`, file objects made of Readers and Writers in :mod:`safemem.to_io`.

Foreign code gets views of its own, which it may release. Memory that needs safecopy is never handed to it: it gets a
buffer, and what a fault leaves in that buffer stays pending for the next call. A buffer is for a few MiB at most,
however much memory there is.

Source: gVisor pkg/safemem/io.go.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol

from safemem.block import Block, Piece, part
from safemem.block_seq import BlockSeq, copy_seq
from safemem.errors import EndOfBlockSeqError, TransferError, add_transferred, moved_count, short_count
from safemem.pending import PendingBytes

# How much memory that needs safecopy a file object is given at a time, in bytes: more than a pipe ever holds, so that
# nobody waits in a pipe for the next piece.
_PIECE: Final = 1 << 21

# How much a function over a list of buffers is given, which is called only once: the rest is a short count.
_STAGED: Final = 1 << 24


class SupportsReadinto(Protocol):
    """What FromIOReader needs of a file object: ``readinto`` as in io.RawIOBase."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill the buffer and return how much; 0 at the end, None if nothing is there now."""
        ...


class SupportsWrite(Protocol):
    """What FromIOWriter needs of a file object: ``write`` as in io.RawIOBase."""

    def write(self, data: memoryview, /) -> int | None:
        """Take bytes and return how many, None if none can be taken now."""
        ...


class BlockSeqReader:
    """A Reader that gives the bytes of ``blocks``, which shrinks as they are read. At its end it gives 0."""

    def __init__(self, blocks: BlockSeq) -> None:
        self.blocks: BlockSeq = blocks

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        """Raises HostFaultError if memory faults; what was copied before it is gone from ``blocks``."""
        n, fault = _copy_some(dsts, self.blocks)
        self.blocks = self.blocks.drop_first(n)
        if fault is not None:
            try:
                raise fault
            finally:
                del fault
        return n


class BlockSeqWriter:
    """A Writer that fills ``blocks``, which shrinks as it is written."""

    def __init__(self, blocks: BlockSeq) -> None:
        self.blocks: BlockSeq = blocks

    def write_from_blocks(self, srcs: BlockSeq) -> int:
        """Raises EndOfBlockSeqError if not all of srcs fits, HostFaultError if memory faults; each has the count."""
        n, fault = _copy_some(self.blocks, srcs)
        self.blocks = self.blocks.drop_first(n)
        if fault is not None:
            try:
                raise fault
            finally:
                del fault
        if n < srcs.num_bytes:
            raise EndOfBlockSeqError(n)
        return n


class FromIOReader:
    """A binary file object as a Reader: one ``readinto`` a block, up to the first short one.

    A long block that needs safecopy takes several. Use an unbuffered file where waiting for a whole block would hang:
    BufferedReader.readinto fills its buffer.
    """

    def __init__(self, file: SupportsReadinto) -> None:
        """Raises TypeError if the file has no readinto: text files, write-only objects."""
        if not callable(getattr(file, "readinto", None)):
            raise TypeError(f"file must be a binary file object with readinto(), not {type(file).__name__}")
        self._file = file
        self._pending = PendingBytes()

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        """The file's own errors pass through, with the count in ``transferred``."""
        if dsts and self._pending:
            return self._pending.deliver(dsts)
        done = 0
        for piece in _short(dsts.pieces()):
            try:
                if isinstance(piece, memoryview):
                    n = moved_count(self._file.readinto(piece[:]), len(piece), "the file's readinto()")
                else:
                    n = self._read_staged(piece)
            except BaseException as exc:
                return short_count(exc, done)
            done += n
            if n < len(piece):
                break
        return done

    def _read_staged(self, block: Block) -> int:
        buffer = memoryview(bytearray(len(block)))
        stopped: BaseException | None = None
        try:
            n = moved_count(self._file.readinto(buffer), len(block), "the file's readinto()")
        except BaseException as exc:
            stopped, n = exc, getattr(exc, "transferred", 0)
        try:
            try:
                delivered = self._pending.deliver(BlockSeq.of(block), bytes(buffer[:n])) if n else 0
            except TransferError as fault:
                self._pending.hold(stopped, fault.transferred)
                raise
            if stopped is not None:
                raise stopped
            return delivered
        finally:
            del stopped


class FromIOWriter:
    """A binary file object as a Writer: one ``write`` a block, several if it is long and needs safecopy.

    It ends at the first short one.
    """

    def __init__(self, file: SupportsWrite) -> None:
        """Raises TypeError if the file has no write."""
        if not callable(getattr(file, "write", None)) or isinstance(file, io.TextIOBase):
            raise TypeError(f"file must be a binary file object with write(), not {type(file).__name__}")
        self._file = file

    def write_from_blocks(self, srcs: BlockSeq) -> int:
        """The file's own errors pass through, with the count in ``transferred``; they come before a source's fault."""
        done = 0
        for piece in _short(srcs.pieces()):
            view, fault = _readable(piece)
            try:
                n = moved_count(self._file.write(view[:]), len(view), "the file's write()") if view else 0
            except BaseException as exc:
                if isinstance(exc, BlockingIOError):
                    done += _characters_written(exc)
                return short_count(exc, done)
            done += n
            if fault is not None and n == len(view):
                fault.transferred = done
                try:
                    raise fault
                finally:
                    del fault
            if n < len(piece):
                break
        return done


class FromVecReaderFunc:
    """A function over a list of writable buffers as a Reader: ``function(buffers) -> bytes filled``.

    It is called at most once, and never without buffers. A claim of more than there is room for counts as all. It
    gets no more than 16 MiB from the first block on that needs safecopy.
    """

    def __init__(self, function: Callable[[Sequence[memoryview]], int]) -> None:
        self._function = function
        self._pending = PendingBytes()

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        """Raises ValueError if the function returns a negative count; its own errors pass through."""
        if not dsts:
            return 0
        if self._pending:
            return self._pending.deliver(dsts)
        # From the first block that may fault on, everything is staged: what lies behind a fault must stay untouched.
        dsts = _within_stage(dsts)
        direct: list[memoryview] = []
        staged: list[tuple[Piece, bytearray]] = []
        for piece in dsts.pieces():
            if isinstance(piece, Block):
                staged.append((piece, bytearray(len(piece))))
            elif staged:
                staged.append((piece, bytearray(piece)))
            else:
                direct.append(piece[:])
        stopped: BaseException | None = None
        try:
            n = self._function(direct + [memoryview(buffer) for _, buffer in staged])
        except BaseException as exc:
            stopped, n = exc, getattr(exc, "transferred", 0)
        try:
            if n < 0:
                raise ValueError(f"function returned a negative count: {n}")
            n = min(n, dsts.num_bytes)
            if staged:
                try:
                    self._deliver(dsts, sum(map(len, direct)), n, staged)
                except TransferError as fault:
                    self._pending.hold(stopped, fault.transferred)
                    raise
            if stopped is None:
                return n
            if n:
                stopped.transferred = n  # type: ignore[attr-defined]
            return short_count(stopped, 0)
        finally:
            del stopped

    def _deliver(self, dsts: BlockSeq, done: int, n: int, staged: list[tuple[Piece, bytearray]]) -> None:
        """Copy what was staged to its blocks, which come after ``done`` bytes; ``n`` bytes in all were read."""
        data = b"".join(buffer for _, buffer in staged)[: max(n - done, 0)]
        try:
            if data:
                self._pending.deliver(dsts.drop_first(done), data)
        except TransferError as exc:
            add_transferred(exc, done)
            raise
        for piece, buffer in staged:
            # As if it had been written in place: a function may have put more there than it says.
            if isinstance(piece, memoryview):
                piece[:] = buffer


class FromVecWriterFunc:
    """A function over a list of readable buffers as a Writer: ``function(buffers) -> bytes taken``.

    It is called at most once, and never without bytes. It gets no more than 16 MiB from the first block on that needs
    safecopy.
    """

    def __init__(self, function: Callable[[Sequence[memoryview]], int]) -> None:
        self._function = function

    def write_from_blocks(self, srcs: BlockSeq) -> int:
        """Raises ValueError if the function returns a negative count; its own errors pass through."""
        views: list[memoryview] = []
        fault: TransferError | None = None
        for piece in _within_stage(srcs).pieces():
            view, fault = _readable(piece)
            if view:
                views.append(view[:])
            if fault is not None:
                break
        total = sum(map(len, views))
        try:
            n = self._function(views) if views else 0
        except BlockingIOError as exc:
            return short_count(exc, 0)
        if n < 0:
            raise ValueError(f"function returned a negative count: {n}")
        n = min(n, total)
        if fault is not None and n == total:
            fault.transferred = n
            try:
                raise fault
            finally:
                del fault
        return n


def _copy_some(dsts: BlockSeq, srcs: BlockSeq) -> tuple[int, TransferError | None]:
    try:
        return copy_seq(dsts, srcs), None
    except TransferError as exc:
        return exc.transferred, exc.with_traceback(None)


def _short(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same memory; of what needs safecopy no piece is longer than a buffer for it."""
    for piece in pieces:
        if isinstance(piece, memoryview):
            yield piece
        else:
            for at in range(0, len(piece), _PIECE):
                yield part(piece, at, min(_PIECE, len(piece) - at))


def _within_stage(seq: BlockSeq) -> BlockSeq:
    """As much of seq as is staged at a time: all that comes before memory that needs safecopy, and some from there."""
    plain = 0
    for piece in seq.pieces():
        if isinstance(piece, Block):
            return seq.take_first(plain + _STAGED)
        plain += len(piece)
    return seq


def _readable(piece: Piece) -> tuple[memoryview, TransferError | None]:
    """The bytes of a piece for foreign code, up to where its memory faults, and that fault."""
    if isinstance(piece, memoryview):
        return piece, None
    buffer = memoryview(bytearray(len(piece)))
    n, fault = _copy_some(BlockSeq.of(Block(buffer)), BlockSeq.of(piece))
    if fault is not None:
        fault.transferred = 0
    return buffer[:n], fault


def _characters_written(exc: BlockingIOError) -> int:
    """What a buffered file took before it would block; the attribute does not exist until it is set."""
    return getattr(exc, "characters_written", 0)
