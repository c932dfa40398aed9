"""What users of user memory test with.

- :func:`check_io`, :func:`check_reader`, :func:`check_writer`: is what you wrote an IO, a Reader, a Writer?
- :class:`ModelMemory` and :class:`ModelBytes`: memory as plainly as it can be said, to compare with;
  :func:`check_memory` compares all of it.
- :class:`Layout`: the mappings of a guest; :func:`conformance_layout` has every edge.
  :mod:`usermem.testing.operations`: calls on memory as values.
- :mod:`usermem.testing.strategies` and :mod:`usermem.testing.machine`: hypothesis strategies for all of that, and a
  state machine to subclass.

The last two need hypothesis (``pip install 'usermem[testing]'``) and are imported by themselves; the rest needs
nothing.
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
