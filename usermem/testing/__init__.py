"""What users of user memory test with: a reference model to judge an IO by."""

from usermem.testing.model import ModelBytes, ModelMemory

__all__ = ["ModelBytes", "ModelMemory"]
