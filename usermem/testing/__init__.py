"""What users of user memory test with: layouts of guests, a reference model to judge an IO by, hypothesis strategies.

:mod:`usermem.testing.strategies` needs hypothesis and is imported by itself; the rest needs nothing.
"""

from usermem.testing.layout import Layout, Mapping
from usermem.testing.model import ModelBytes, ModelMemory

__all__ = ["Layout", "Mapping", "ModelBytes", "ModelMemory"]
