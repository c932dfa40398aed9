"""What users of user memory test with: layouts of guests, a reference model, a conformance
suite that judges an IO by it, and hypothesis strategies.

:mod:`usermem.testing.strategies` needs hypothesis and is imported by itself; the rest needs nothing.
"""

from usermem.testing.conformance import check_io
from usermem.testing.layout import Layout, Mapping
from usermem.testing.model import ModelBytes, ModelMemory

__all__ = ["Layout", "Mapping", "ModelBytes", "ModelMemory", "check_io"]
