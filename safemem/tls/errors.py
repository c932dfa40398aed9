"""The errors of TLS: OSErrors that carry the alert which a peer would be sent, or was received."""

from __future__ import annotations

import errno
import os
from enum import IntEnum
from typing import Any

from hostarch.listed_enum import ListedEnumType
from safemem.errors import TransferError


class Alert(IntEnum, metaclass=ListedEnumType):
    """AlertDescription, RFC 8446 section 6."""

    CLOSE_NOTIFY = 0
    UNEXPECTED_MESSAGE = 10
    BAD_RECORD_MAC = 20
    RECORD_OVERFLOW = 22
    HANDSHAKE_FAILURE = 40
    BAD_CERTIFICATE = 42
    UNSUPPORTED_CERTIFICATE = 43
    CERTIFICATE_REVOKED = 44
    CERTIFICATE_EXPIRED = 45
    CERTIFICATE_UNKNOWN = 46
    ILLEGAL_PARAMETER = 47
    UNKNOWN_CA = 48
    ACCESS_DENIED = 49
    DECODE_ERROR = 50
    DECRYPT_ERROR = 51
    PROTOCOL_VERSION = 70
    INSUFFICIENT_SECURITY = 71
    INTERNAL_ERROR = 80
    INAPPROPRIATE_FALLBACK = 86
    USER_CANCELED = 90
    MISSING_EXTENSION = 109
    UNSUPPORTED_EXTENSION = 110
    UNRECOGNIZED_NAME = 112
    BAD_CERTIFICATE_STATUS_RESPONSE = 113
    UNKNOWN_PSK_IDENTITY = 115
    CERTIFICATE_REQUIRED = 116
    NO_APPLICATION_PROTOCOL = 120


EKEYEXPIRED = 127
"""Linux's number on every host: it is the guest's."""

# What the kernel's TLS answers (net/tls/tls_sw.c); other violations of the protocol are EPROTO.
_ERRNOS = {Alert.BAD_RECORD_MAC: errno.EBADMSG, Alert.RECORD_OVERFLOW: errno.EMSGSIZE}


class TLSError(TransferError):
    """The peer, or somebody between, broke the rules of TLS. Nothing can be read any more.

    ``alert`` is what the peer should be sent: an :class:`Alert`. ``transferred`` is 0: data comes first, its error at
    the next call.
    """

    def __init__(self, alert: Alert, reason: str) -> None:
        code = _ERRNOS.get(alert, errno.EPROTO)
        super().__init__(code, f"{os.strerror(code)}: {reason} ({alert.name.lower()})")
        self.alert = alert
        self.reason = reason

    def _init_args(self) -> tuple[Any, ...]:
        return (self.alert, self.reason)


class ReceivedAlertError(TransferError):
    """The peer has sent a fatal alert. ``alert`` is its number: an :class:`Alert`, or an int that is none."""

    def __init__(self, alert: int) -> None:
        self.alert: int = Alert(alert) if alert in Alert.__members__.values() else alert
        name = self.alert.name.lower() if isinstance(self.alert, Alert) else f"number {alert}"
        super().__init__(errno.ECONNABORTED, f"{os.strerror(errno.ECONNABORTED)}: the peer sent the alert {name}")

    def _init_args(self) -> tuple[Any, ...]:
        return (int(self.alert),)


class TruncationError(TransferError):
    """The transport ended without a close_notify: somebody may have cut the stream."""

    def __init__(self, inside_record: bool) -> None:
        where = "inside a record" if inside_record else "between two records"
        super().__init__(errno.ECONNRESET, f"{os.strerror(errno.ECONNRESET)}: no close_notify; the stream ends {where}")
        self.inside_record = inside_record

    def _init_args(self) -> tuple[Any, ...]:
        return (self.inside_record,)


class KeyExpiredError(TransferError):
    """The peer has changed its keys, and the new ones are not known: they must be given by ``rekey``.

    Not final. As the kernel's EKEYEXPIRED.
    """

    def __init__(self) -> None:
        super().__init__(EKEYEXPIRED, "Key has expired: the peer changed its keys; call rekey()")

    def _init_args(self) -> tuple[Any, ...]:
        return ()


class StreamInterruptedError(TransferError):
    """A signal handler's exception, or a MemoryError, came when a call had done something and not yet counted it.

    The place in the stream is not known any more, so that nothing more can be read, or written: final.
    """

    def __init__(self, what: str) -> None:
        reason = f"a {what} was interrupted, and the place in the stream is lost"
        super().__init__(errno.ECONNABORTED, f"{os.strerror(errno.ECONNABORTED)}: {reason}")
        self.what = what

    def _init_args(self) -> tuple[Any, ...]:
        return (self.what,)


class EngineError(RuntimeError):
    """No AEAD engine can be used, or not the one that was asked for; the message says what to install."""
