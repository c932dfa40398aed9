"""Beside Unicorn: an engine that runs in a space's own memory, and user memory over an engine's.

- :func:`share`: keep an engine's map equal to an address space's, without copies.
- :class:`RegisterBatch`: several registers of an engine in one call, for system call hooks.
- :class:`UnicornIO`: the whole contract over the memory an engine has of its own.

They take the caller's ``Uc`` and import nothing of unicorn's.
"""

from usermem.unicorn.own_memory import UnicornIO
from usermem.unicorn.registers import RegisterBatch
from usermem.unicorn.shared_engine import SharedEngine, share

__all__ = ["RegisterBatch", "SharedEngine", "UnicornIO", "share"]
