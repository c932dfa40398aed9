"""What users of user memory test with.

- :func:`check_io`, :func:`check_reader`, :func:`check_writer`: is what you wrote an IO, a Reader, a Writer?
- :class:`ModelMemory` and :class:`ModelBytes`: memory as plainly as it can be said, to compare with;
  :func:`check_memory` compares all of it.
- :class:`Layout`: the mappings of a guest; :func:`conformance_layout` has every edge.
  :mod:`usermem.testing.operations`: calls on memory as values; :mod:`usermem.testing.corpus`: the same as bytes.
- :mod:`usermem.testing.progress` and :mod:`usermem.testing.edges`: what a campaign has done, counted and shown.
- :mod:`usermem.testing.strategies` and :mod:`usermem.testing.machine`: hypothesis strategies for all of that, and a
  state machine to subclass.

Strategies and the machine need hypothesis (``pip install 'usermem[testing]'``); the rest needs nothing. Modules that
are named here are imported by themselves.
"""

from usermem.testing.compare import check_memory
from usermem.testing.conformance import check_io
from usermem.testing.layout import Layout, Mapping, conformance_layout
from usermem.testing.model import ModelBytes, ModelMemory
from usermem.testing.streams import check_reader, check_writer

__all__ = [
    "Layout",
    "Mapping",
    "ModelBytes",
    "ModelMemory",
    "check_io",
    "check_memory",
    "check_reader",
    "check_writer",
    "conformance_layout",
]
