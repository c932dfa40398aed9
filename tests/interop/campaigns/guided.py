"""A campaign that coverage guides, by atheris.

In ``tests/interop``: ``python -m campaigns.guided CORPUS_FOLDER [libFuzzer's options]``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["campaigns.sample"]):
    from campaigns import sample
from usermem.testing.corpus import Codec
from usermem.testing.operations import CopyIn, CopyOut

GUEST = sample.begin()
CODEC = Codec(sample.LAYOUT.edges)
START = sample.LAYOUT.mappings[0].addr


def one_input(data: bytes) -> None:
    operations = CODEC.decode(data)
    try:
        sample.check(GUEST, operations)
    except AssertionError:
        print(f"operations: {operations}", file=sys.stderr, flush=True)
        raise


if __name__ == "__main__":
    seed = CODEC.encode([CopyOut(START, b"seed"), CopyIn(START, 4)])
    (Path(sys.argv[1]) / "seed").write_bytes(seed)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
