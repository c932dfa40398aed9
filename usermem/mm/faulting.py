"""Whether this host has memory that may fault: file mappings, which safecopy copies."""

from __future__ import annotations

import sys
from functools import cache

from safemem import HostFaultError, safecopy


@cache
def can_map() -> bool:
    """Whether this host can copy memory that may fault, which is what file mappings are."""
    if sys.platform != "linux":
        return False
    try:
        safecopy.copy_in(memoryview(bytearray(1)), 0)
    except HostFaultError:
        return True
    except OSError:
        pass
    return False
