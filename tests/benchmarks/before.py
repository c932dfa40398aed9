"""The tree that the work on whole system calls began with, in this process beside today's."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

_COMMIT = "f67b8bc"
_PACKAGES = ("hostarch", "safemem", "usermem")
_ROOT = Path(__file__).resolve().parents[2]


def usermem_before() -> ModuleType | None:
    """Its package ``usermem``, with modules of its own; None where git is missing, or this part of the history."""
    git = shutil.which("git")
    if git is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        archive = f"{folder}/before.zip"
        command = [git, "-C", str(_ROOT), "-c", f"safe.directory={_ROOT}", "archive", "-o", archive, _COMMIT]
        if subprocess.run([*command, *_PACKAGES], capture_output=True, check=False).returncode:
            return None
        today = _forget()
        sys.path.insert(0, archive)
        try:
            return importlib.import_module("usermem")
        finally:
            sys.path.remove(archive)
            _forget()
            sys.modules.update(today)


def _forget() -> dict[str, ModuleType]:
    """Take our packages out of ``sys.modules``; what was taken out."""
    names = [name for name in sys.modules if name.partition(".")[0] in _PACKAGES]
    return {name: sys.modules.pop(name) for name in names}
