"""The README's code beside Unicorn runs, after the code before it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("unicorn", reason="needs Unicorn: pip install 'usermem[interop]'")
README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def test_code_runs() -> None:
    """It asserts what it says; the emulator's block before it gives it a space."""
    _, section = README.split("### Beside an emulator\n")
    found = re.findall(r"^```py(?:thon)?\n(.*?)^```$", section.split("\n## ")[0], re.DOTALL | re.MULTILINE)
    assert len(found) == 2
    namespace: dict[str, Any] = {"__name__": "readme"}
    for block in found:
        exec(compile(block, "README.md, beside an emulator", "exec"), namespace)
    assert namespace["fault"].address == 0
