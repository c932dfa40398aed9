"""User memory that is not ours: another process, a core file, whatever two functions read and write.

- :class:`ProcessIO`: the memory of a running process.
- :func:`open_core`: the memory of a process that has died, out of its ELF core.
- :class:`FunctionIO`: memory behind functions: a debugger, another emulator, a network.
- :class:`RemoteIO`: what the first and the third derive from: the whole contract out of ``read`` and ``write``.

Each is an IO: strings, iovecs, structures, descriptors and the rest of usermem work on it.
"""

from usermem.memories.core import CoreIO, open_core
from usermem.memories.function import FunctionIO
from usermem.memories.mapping import MappedRange
from usermem.memories.process import ProcessIO
from usermem.memories.remote import RemoteIO

__all__ = ["CoreIO", "FunctionIO", "MappedRange", "ProcessIO", "RemoteIO", "open_core"]
