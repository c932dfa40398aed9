"""The record layer's numbers: RFC 8446 section 5."""

from __future__ import annotations

from enum import IntEnum

from hostarch.listed_enum import ListedEnumType

HEADER = 5
TAG = 16
MAX_CONTENT = 1 << 14
"""The most bytes of content in a record."""

# content, its type byte and the tag; padding fits inside, so that nothing longer can be right
# (RFC 8446 section 5.4 limits the inner plaintext to 2**14 + 1 bytes, as Linux does).
MAX_BODY = MAX_CONTENT + 1 + TAG
MAX_RECORD = 16_645
"""The longest record that the header may announce, 2**14 + 256 bytes and the header: RFC 8446 section 5.2."""

MAX_SEQ = (1 << 64) - 1


class ContentType(IntEnum, metaclass=ListedEnumType):
    """What a record carries."""

    CHANGE_CIPHER_SPEC = 20
    ALERT = 21
    HANDSHAKE = 22
    APPLICATION_DATA = 23
