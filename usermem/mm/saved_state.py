"""A state as a file, and back: what is saved of whatever lies behind the mappings.

The bytes of private memory are in the file, and those of shared anonymous memory. Of a private mapping of anything else
(a program's file, say) all bytes that it shows are saved; what is loaded is a private mapping of the snapshot's own
file, under the same name. Shared mappings of anything else belong to others and cannot be saved.

Whoever loads a file maps its pages, and so shares them with all who do. Somebody may truncate it: such memory may
fault, so only safecopy touches it. Read into memory it may not.
"""

from __future__ import annotations

from functools import partial

from safemem import HostFaultError, safecopy
from usermem.mm import holes
from usermem.mm.backing.backing import Backing
from usermem.mm.backing.saved_bytes import SavedBytes
from usermem.mm.backing.shared_memory import SharedCopy, SharedMemory
from usermem.mm.change import Tables
from usermem.mm.descriptor import Path
from usermem.mm.extent import Extent, ExtentSet
from usermem.mm.image import Image, maps_images, new_image, read_whole
from usermem.mm.maps import printable
from usermem.mm.memory_map import MemoryMap
from usermem.mm.page_cache import PageCache
from usermem.mm.pma import PMASet
from usermem.mm.saved_space import PRIVATE, Behind, SavedExtent, SavedMapping, SavedSpace
from usermem.mm.snapshot_file import DATA, LoadedSpace, Source, load, save
from usermem.mm.state import State
from usermem.mm.vma import VMA, VMASet

_PIECE = 1 << 20  # read at a time

_Pages = list[tuple[SavedExtent, Source]]


def save_state(path: Path, state: State, mm: MemoryMap) -> None:
    """Write a state of a map to a file. Raises ValueError, naming the mapping, if one cannot be saved; and OSError,
    with EIO if the file that the state was loaded from has been truncated.

    Until all is on the disk, the file at ``path`` stays what it was. What private mappings of files and objects show
    where they were not written is read now.
    """
    numbers: dict[object, int] = {memory: number for number, memory in enumerate(state.copies)}
    mappings = [_saved_mapping(vma, numbers, mm.arch.page_size) for vma in state.tables.vmas]
    tables = state.tables
    saved = SavedSpace(
        mm.arch,
        mm.base,
        mm.limits,
        tuple(mappings),
        tuple((guard.start, guard.end) for guard in tables.guards),
        tuple(copy.length for copy in state.copies.values()),
        tables.brk_start,
        tables.brk,
        tables.mlock_future,
    )
    pages: _Pages = []
    for vma, mapping in zip(tables.vmas, mappings, strict=True):
        if mapping.behind is Behind.OTHER:
            pages += _pages_shown(state, vma, mapping)
        elif not vma.shared:
            pages += _pages_written(state, vma)
    for number, copy in enumerate(state.copies.values()):
        pages += [(SavedExtent(number, start, end), copy.read) for start, end in copy.data]
    save(path, saved, pages)


def _saved_mapping(vma: VMA, numbers: dict[object, int], page: int) -> SavedMapping:
    backing = vma.backing
    behind, number, accessible = Behind.ANONYMOUS, 0, None
    if backing.shared_memory is not None:
        behind, number = Behind.SHARED, numbers[backing.shared_memory]
    elif not backing.anonymous:
        if vma.shared:
            name = printable(vma.label) or repr(backing.mapped)
            raise ValueError(f"the mapping at {vma.start:#x} shares {name}, which is not the space's: unmap it to save")
        behind, number = Behind.OTHER, numbers.setdefault((Behind.OTHER, backing.key), len(numbers))
        accessible = backing.reach(page)
    return SavedMapping(
        vma.start, vma.end, vma.prot, vma.max_prot, vma.shared, behind, number, accessible, vma.offset, vma.guard,
        vma.mlock_mode, vma.advice_flags, backing.device, backing.inode, vma.name, backing.label, backing.name_format,
    )  # fmt: skip


def _pages_written(state: State, vma: VMA) -> _Pages:
    """What has images of a private mapping of anonymous memory."""
    pages: _Pages = []
    for extent in state.extents.within(vma.start, vma.end):
        pages.append((SavedExtent(PRIVATE, extent.start, extent.end), partial(_read, extent)))
    return pages


def _read(extent: Extent, start: int, end: int) -> bytearray:
    return read_whole(extent.image, extent.offset + start - extent.start, end - start)


def _pages_shown(state: State, vma: VMA, mapping: SavedMapping) -> _Pages:
    """All that a private mapping of something else shows."""
    end = vma.end
    if mapping.accessible is not None:
        end = min(end, vma.start + mapping.accessible - vma.offset)
    if end <= vma.start:
        return []
    return [(SavedExtent(PRIVATE, vma.start, end), partial(_shown, state, vma))]


def _shown(state: State, vma: VMA, start: int, end: int) -> bytearray:
    """The bytes at guest addresses in a private mapping of a file or an object."""
    found, at = bytearray(end - start), start
    while at < end:
        offset, run = vma.backing.run(vma.offset_at(at), vma.offset_at(start), vma.offset_at(end))
        skip = vma.offset_at(at) - offset
        part = memoryview(found)[at - start : at - start + len(run) - skip]
        try:
            safecopy.copy_in(part, run.address + skip)
        except HostFaultError as exc:
            raise ValueError(f"the file behind the mapping at {vma.start:#x} has become shorter: save again") from exc
        at += len(part)
    for extent in state.extents.within(start, end):
        found[extent.start - start : extent.end - start] = _read(extent, extent.start, extent.end)
    return found


def load_state(path: Path, *, in_memory: bool) -> tuple[MemoryMap, State]:
    """A state out of a file, and an empty map with its machine and limits. Raises SnapshotFileError, and OSError.

    Its pages are the file's; or, ``in_memory`` and where images cannot be mapped, copies of them in this process.
    Raises MemoryError if it has no room.
    """
    loaded = load(path)
    image: Image = _copied(loaded) if in_memory or not maps_images() else loaded.file
    saved = loaded.saved
    mm = MemoryMap(saved.arch, saved.limits, PageCache())
    mm.base = saved.arch.page_round_down(saved.base)
    copies = [_copy(loaded, number, image) for number in range(len(saved.memories))]
    private = [Extent(each.start, each.end, image, each.offset) for each in loaded.extents if each.space == PRIVATE]
    shown = ExtentSet().exchange([], private)
    vmas: list[VMA] = []
    last: tuple[SavedMapping, Backing] | None = None
    for mapping in saved.mappings:
        if mapping.behind is Behind.ANONYMOUS:
            backing: Backing = mm.anonymous
        elif mapping.behind is Behind.SHARED:
            memory = copies[mapping.number].memory
            backing = memory if mapping.shared else memory.private()
        else:
            backing = _saved_bytes(mapping, shown, last)
            shown = shown.replace(mapping.start, mapping.end, [])
        vmas.append(_vma(mapping, backing))
        last = mapping, backing
    tables = Tables(VMASet().put(0, 1 << 64, vmas, []), PMASet())  # of which those that could be one are
    for start, end in saved.guards:
        tables.guards = tables.guards.with_guard(start, end)
    shown = _accessible(mm, tables, shown)
    tables.brk_start, tables.brk, tables.mlock_future = saved.brk_start, saved.brk, saved.mlock_future
    return mm, State(tables, {}, {copy.memory: copy for copy in copies}, shown)


def _accessible(mm: MemoryMap, tables: Tables, shown: ExtentSet) -> ExtentSet:
    """The images that can be accessed: none in guards and behind the end of shared memory, whatever the file says."""
    hidden = [(guard.start, guard.end) for guard in tables.guards]
    for vma in tables.vmas:
        if vma.backing.shared_memory is not None:
            hidden.append((max(mm.accessible_end(vma), vma.start), vma.end))
    for start, end in hidden:
        if start < end and not shown.is_free(start, end):
            shown = shown.replace(start, end, [])
    return shown


def _copy(loaded: LoadedSpace, number: int, image: Image) -> SharedCopy:
    """The bytes of a shared anonymous memory."""
    parts = [extent for extent in loaded.extents if extent.space == number]
    data = [(extent.start, extent.end) for extent in parts]
    memory = SharedMemory(loaded.saved.memories[number])
    return SharedCopy(memory, data, image, parts[0].offset if parts else 0)


def _saved_bytes(mapping: SavedMapping, shown: ExtentSet, last: tuple[SavedMapping, Backing] | None) -> SavedBytes:
    """What a mapping of something else showed; with the one before it if that goes on, so that the two can merge."""
    backing = SavedBytes(mapping)
    if last is not None and isinstance(last[1], SavedBytes):
        before = last[0]
        end = before.end, before.number, before.offset + before.end - before.start
        if end == (mapping.start, mapping.number, mapping.offset):
            backing = last[1]
    for extent in shown.within(mapping.start, mapping.end):
        start = mapping.offset + extent.start - mapping.start
        backing.add(extent.moved(start - extent.start))
    return backing


def _copied(loaded: LoadedSpace) -> Image:
    """The pages of a file in memory, at the same offsets. Raises OSError (EIO) if the file is truncated meanwhile."""
    end = max((extent.offset + extent.end - extent.start for extent in loaded.extents), default=0)
    copy = new_image(end)
    for start, stop in holes.data(loaded.file.fd, DATA, end):
        for at in range(start, stop, _PIECE):
            copy.fill(at, memoryview(read_whole(loaded.file, at, min(_PIECE, stop - at))))
    read_whole(loaded.file, max(end - 1, 0), 1)  # what was cut off looked like a hole
    return copy


def _vma(each: SavedMapping, backing: Backing) -> VMA:
    return VMA(
        each.start, each.end, each.prot, each.max_prot, each.shared, backing, each.offset, each.guard, each.name,
        each.mlock_mode, each.fork,
    )  # fmt: skip
