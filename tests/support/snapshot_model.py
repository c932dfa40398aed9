"""The model of address spaces, their snapshots and forks: dicts of pages, all copied as wholes.

It shares no code with :mod:`usermem.mm`: no tables, no images, no overlay. A page that is private has bytes of its own
or shows its source's; a shared page always shows its source's. Each page's bytes have a *token*, an object that is
another one after each write and each mapping: pages with one token have the same bytes, whoever has them.
"""

from __future__ import annotations

from attrs import define, evolve, field

from hostarch import mman

PAGE = 4096
ZEROS = bytes(PAGE)
RW = mman.PROT_READ | mman.PROT_WRITE
SOURCE_PAGES = 24
"""How many pages a source has: more than a mapping in it can grow to."""


def fill(old: bytes, at: int, data: bytes) -> bytes:
    """A page with some bytes put at an offset."""
    return old[:at] + data + old[at + len(data) :]


@define(eq=False)
class Source:
    """What many mappings show: shared anonymous memory, which snapshots hold; a file, an object, which they do not."""

    held: bool
    pages: list[bytes] = field(factory=lambda: [ZEROS] * SOURCE_PAGES)
    tokens: list[object] = field(factory=lambda: [object() for _ in range(SOURCE_PAGES)])
    read_in: bool = False
    """Whether private pages are copies from the first touch on: what was only read may be dirty."""
    inode: int | None = None
    """None: not known, and so not compared."""

    def write(self, page: int, at: int, data: bytes) -> None:
        """Put some bytes into one page."""
        self.pages[page] = fill(self.pages[page], at, data)
        self.tokens[page] = object()

    def copied(self) -> Source:
        """The same bytes as they are now."""
        return Source(self.held, [*self.pages], [*self.tokens], self.read_in)

    def put_back(self, copy: Source) -> None:
        """Have the bytes of a copy."""
        self.pages, self.tokens = [*copy.pages], [*copy.tokens]


@define(eq=False)
class Page:
    """One page of a guest's. ``own`` are the bytes of a private page that is not its source's, or zeros, any more."""

    prot: int
    shared: bool = False
    source: Source | None = None
    number: int = 0  # of the source's page
    own: bytes | None = None
    token: object = field(factory=object)
    guard: bool = False
    locked: bool = False
    dont_fork: bool = False
    wipe: bool = False
    name: str = ""

    @property
    def content(self) -> bytes:
        """Its bytes."""
        if self.own is not None:
            return self.own
        return self.source.pages[self.number] if self.source is not None else ZEROS

    @property
    def anonymous(self) -> bool:
        """Whether it is private memory without a source."""
        return self.source is None

    def write(self, at: int, data: bytes) -> None:
        """Put some bytes into it."""
        if self.shared:
            assert self.source is not None
            self.source.write(self.number, at, data)
        else:
            self.own = fill(self.content, at, data)
            self.token = object()

    def forget(self) -> None:
        """Be what it was when it was mapped (MADV_DONTNEED)."""
        if not self.shared:
            self.own, self.token = None, object()

    def install_guard(self) -> None:
        """Let all accesses fault (MADV_GUARD_INSTALL)."""
        self.forget()
        self.guard = True


@define(eq=False)
class Space:
    """What is mapped in an address space, by page numbers, and its heap."""

    pages: dict[int, Page] = field(factory=dict)
    brk_start: int = 0
    brk: int = 0

    def copied(self) -> Space:
        """The same pages, each for itself; their sources are the same."""
        return Space({number: evolve(page) for number, page in self.pages.items()}, self.brk_start, self.brk)

    def forked(self) -> Space:
        """A forked child's."""
        child = self.copied()
        child.pages = {number: page for number, page in child.pages.items() if not page.dont_fork}
        for page in child.pages.values():
            page.locked = False
            if page.wipe:
                page.guard = False
                page.forget()
        return child

    def sources(self) -> dict[Source, Source]:
        """Copies of all shared anonymous memory that is mapped."""
        found = {page.source for page in self.pages.values() if page.source is not None and page.source.held}
        return {source: source.copied() for source in found}

    def over(self, other: dict[Source, Source]) -> None:
        """Have other sources in the place of some."""
        for page in self.pages.values():
            if page.source in other:
                page.source = other[page.source]

    def write(self, addr: int, data: bytes) -> None:
        """Put bytes at an address, over as many pages as they need."""
        while data:
            at = addr % PAGE
            part = data[: PAGE - at]
            self.pages[addr // PAGE].write(at, part)
            addr, data = addr + len(part), data[len(part) :]

    def reach(self, addr: int, length: int, right: int) -> int:
        """How many bytes from an address on can be accessed; right 0: whatever the rights."""
        done = 0
        while done < length:
            page = self.pages.get((addr + done) // PAGE)
            if page is None or page.guard or right & ~_implied(page.prot):
                break
            done += PAGE - (addr + done) % PAGE
        return min(done, length)


def _implied(prot: int) -> int:
    """Rights with the reading that writing and executing imply."""
    return prot | mman.PROT_READ if prot else 0


@define(eq=False)
class Moment:
    """What a space was at one moment."""

    of: Space
    space: Space
    sources: dict[Source, Source]

    def restore(self) -> None:
        """Have the space be that again."""
        again = self.space.copied()
        self.of.pages, self.of.brk_start, self.of.brk = again.pages, again.brk_start, again.brk
        for source, copy in self.sources.items():
            source.put_back(copy)

    def spawned(self) -> Space:
        """A new space that begins as that one was, with shared memory of its own."""
        space = self.space.copied()
        space.over({source: copy.copied() for source, copy in self.sources.items()})
        return space

    def held(self, page: Page) -> Source | None:
        """The source of a page as it was then, if its bytes belong to the moment."""
        return self.sources.get(page.source) if page.source is not None else None

    def content(self, page: Page) -> bytes:
        """The bytes of one of its pages then."""
        source = self.held(page)
        return source.pages[page.number] if source is not None and page.own is None else page.content


def moment(space: Space) -> Moment:
    """What a space is now."""
    return Moment(space, space.copied(), space.sources())


def written(then: Moment, now: Moment) -> tuple[set[int], set[int]]:
    """The pages mapped now that must be dirty since then, and those that may be.

    Must: whose bytes, if they are the space's own, are others; what was not mapped counts as zeros. May: what was
    written, even with the same bytes, or mapped since; and what has memory since it was touched, by a read.
    """
    must, may = set(), set()
    for number, page in now.space.pages.items():
        old = then.space.pages.get(number)
        if _is_theirs(page) or (old is not None and _is_theirs(old)):
            changed = old is None or _is_theirs(page) != _is_theirs(old) or page.own != old.own
        else:
            changed = now.content(page) != (then.content(old) if old is not None else ZEROS)
        if changed and not (page.shared and _is_theirs(page) and old is not None and old.token is page.token):
            must.add(number)
        # An object's pages are read in when touched; memory that was used before and given back is zeroed then.
        filled = page.source.read_in if page.source is not None else page.own is None
        token = _source_token(then, old) if old is not None else None
        if filled or old is None or old.token is not page.token or token is not _source_token(now, page):
            may.add(number)
    return must, may | must


def _is_theirs(page: Page) -> bool:
    """Whether it shows what is not the space's own: of a file or an object."""
    return page.source is not None and not page.source.held


def _source_token(of: Moment, page: Page) -> object:
    source = of.held(page)
    return source.tokens[page.number] if source is not None else None


def different(one: Moment, other: Moment) -> tuple[set[int], set[int]]:
    """The pages that must be in a diff of two moments, and those that may be: of files and objects, any."""
    must = one.space.pages.keys() ^ other.space.pages.keys()
    may = set(must)
    for number in one.space.pages.keys() & other.space.pages.keys():
        left, right = one.space.pages[number], other.space.pages[number]
        if one.content(left) != other.content(right):
            must.add(number)
        if _is_theirs(left) or _is_theirs(right):
            may.add(number)
    return must, may | must
