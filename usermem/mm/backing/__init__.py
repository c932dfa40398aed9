"""What lies behind mappings: one class for each kind, which answers for itself."""

from __future__ import annotations

from usermem.mm.backing.backing import Backing
from usermem.mm.backing.mapped_object import MappedObject
from usermem.mm.backing.object_pages import pages_of
from usermem.mm.backing.private_object import PrivateObject


def object_backing(mapped: MappedObject | Backing, shared: bool) -> Backing:
    """What a mapping of an object of the simulator's shows: the pages that all share, or pages of its own."""
    if isinstance(mapped, Backing):
        return mapped if shared else mapped.private()
    return pages_of(mapped) if shared else PrivateObject(mapped)
