"""Struct formats as a guest's C compiler lays them out: the standard library's answers where the host is one."""

from __future__ import annotations

import struct
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hostarch import AMD64, ARM, I386, MIPS, PPC64, S390X, Arch

ITEMS = st.lists(
    st.tuples(st.sampled_from(["", "0", "1", "2", "7"]), st.sampled_from("xcbB?hHiIlLqQnNefdspP")), max_size=8
)
on_amd64 = pytest.mark.skipif(
    sys.byteorder != "little" or struct.calcsize("P") != 8, reason="needs a host that is laid out as amd64"
)


@on_amd64
@given(items=ITEMS, prefix=st.sampled_from(["", "@", "=", "<", ">", "!"]), data=st.data())
def test_against_the_standard_library(items: list[tuple[str, str]], prefix: str, data: st.DataObject) -> None:
    """Sizes and values are those of ``struct`` for this host, and errors for what it refuses."""
    format_ = prefix + data.draw(st.sampled_from(["", " "])).join(count + code for count, code in items)
    assume(("0", "p") not in items)  # which ends CPython's own unpack with a SystemError
    try:
        known = struct.Struct(format_)
    except struct.error:
        with pytest.raises(struct.error):
            AMD64.struct(format_)
        return
    ours = AMD64.struct(format_)
    assert ours.size == known.size
    content = data.draw(st.binary(min_size=known.size, max_size=known.size))
    assert repr(ours.unpack(content)) == repr(known.unpack(content))


@pytest.mark.parametrize("format_", ["@", "", "i", "3z", "i3", "i$", "=P", "é", "i é"])
def test_what_is_no_format(format_: str) -> None:
    """The same formats are refused as by the standard library, by the same error."""
    try:
        struct.Struct(format_)
    except (struct.error, UnicodeEncodeError):
        with pytest.raises((struct.error, UnicodeEncodeError)):
            AMD64.struct(format_)
    else:
        AMD64.struct(format_)


@pytest.mark.parametrize(
    ("arch", "format_", "expected"),
    [
        (AMD64, "BqB0q", "<B7xqB7x0q"),
        (I386, "BqB0q", "<B3xqB3x0q"),
        (ARM, "BqB0q", "<B7xqB7x0q"),
        (MIPS, "BPhlN", ">B3xIh2xiI"),
        (PPC64, "BPhlN", ">B7xQh6xqQ"),
        (S390X, "=hlq", ">hlq"),
        (MIPS, "<hq", "<hq"),
        (MIPS, "100P", ">100I"),
    ],
)
def test_other_machines(arch: Arch, format_: str, expected: str) -> None:
    """Byte order, pointers, and alignment, by hand."""
    assert arch.struct(format_).format == expected
