"""KernelTLSReader: a guest's MSG_PEEK and MSG_WAITALL, and the cases that the kernel's own tests have of them.

Source: net/tls/tls_sw.c (tls_sw_recvmsg, process_rx_list), tools/testing/selftests/net/tls.c.
"""

from __future__ import annotations

import errno
from socket import MSG_ERRQUEUE, MSG_PEEK, MSG_WAITALL

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem import BlockSeq, HostFaultError
from safemem.tls import CryptoInfo, KernelTLSReader
from sample_blocks import room
from tls_kernel import END, INFO, data, fails, reader, receive
from tls_records import ALERT, CLOSE_NOTIFY, DATA, HANDSHAKE, KEY_UPDATE, SECRET, Record, Source, sealed_all
from usermem.testing.faulty_memory import FaultyMemory

RECORD_TYPE = 100


def peek(kernel: KernelTLSReader, size: int = 100, flags: int = 0) -> tuple[bytes, int, bool]:
    """What a call with MSG_PEEK gives."""
    return receive(kernel, size, flags=flags | MSG_PEEK)


def test_recv_peek() -> None:
    """A record is peeked at again and again, and then read; MSG_EOR is not told when it is first decrypted."""
    kernel = reader(data(b"test_read_peek"))
    assert peek(kernel) == (b"test_read_peek", DATA, False)
    assert peek(kernel) == (b"test_read_peek", DATA, True)
    assert peek(kernel, 4) == (b"test", DATA, True)
    assert receive(kernel, 4) == (b"test", DATA, False)
    assert peek(kernel) == (b"_read_peek", DATA, True)
    assert receive(kernel) == (b"_read_peek", DATA, True)
    assert (peek(kernel), receive(kernel)) == ((b"", 0, False), (b"", 0, False))


def test_recv_peek_large_buf_mult_recs() -> None:
    """With MSG_WAITALL the peek receives until all that was asked for is there."""
    wire = sealed_all(data(b"test_read_peek"), data(b"_mult_recs"))
    kernel = KernelTLSReader(Source(*(wire[at : at + 7] for at in range(0, len(wire), 7))), INFO, buffer_size=16_645)
    assert peek(kernel, 24) == (b"test_read_peek", DATA, False)
    assert peek(kernel, 24, MSG_WAITALL) == (b"test_read_peek_mult_recs", DATA, True)
    assert receive(kernel, 20) == (b"test_read_peek_mult_", DATA, True)
    assert receive(kernel, 20) == (b"recs", DATA, True)


def test_control_msg() -> None:
    """A record of another type: EIO without room for its type, then peeked at, then read."""
    kernel = reader(Record(RECORD_TYPE, b"test_read"), Record(RECORD_TYPE, b"again"))
    fails(kernel, errno.EIO, has_control=False)
    assert peek(kernel, flags=MSG_WAITALL) == (b"test_read", RECORD_TYPE, True)
    fails(kernel, errno.EIO, has_control=False)
    assert receive(kernel, flags=MSG_WAITALL) == (b"test_read", RECORD_TYPE, True)
    assert peek(kernel) == (b"again", RECORD_TYPE, False)
    assert receive(kernel) == (b"again", RECORD_TYPE, True)


def test_data_control_data() -> None:
    """A peek stops at another type, every time."""
    kernel = reader(data(b"1111"), Record(RECORD_TYPE, b"2222"), data(b"3333"))
    assert peek(kernel) == (b"1111", DATA, False)
    assert peek(kernel, flags=MSG_WAITALL) == (b"1111", DATA, True)
    expected = [(b"1111", DATA, True), (b"2222", RECORD_TYPE, True), (b"3333", DATA, True)]
    assert [receive(kernel, flags=MSG_WAITALL) for _ in expected] == expected


def test_waiting_for_all() -> None:
    """Many receives fill dsts; would-block, an error and the end give what there is, and the error comes next."""
    wire = sealed_all(*(data(bytes([97 + i]) * 10) for i in range(6)))
    parts = [wire[at : at + 32] for at in range(0, len(wire), 32)]
    kernel = KernelTLSReader(
        Source(*parts[:2], BlockingIOError(), *parts[2:4], ConnectionResetError(), *parts[4:]), INFO
    )
    assert receive(kernel, 15, flags=MSG_WAITALL) == (b"a" * 10 + b"b" * 5, DATA, True)
    assert receive(kernel, 15, flags=MSG_WAITALL) == (b"b" * 5, DATA, True)
    assert receive(kernel, 25, flags=MSG_WAITALL) == (b"c" * 10 + b"d" * 10, DATA, True)
    with pytest.raises(ConnectionResetError):
        kernel.recvmsg(room(9), flags=MSG_WAITALL)
    assert receive(kernel, flags=MSG_WAITALL) == (b"e" * 10 + b"f" * 10, DATA, True)
    assert receive(kernel, flags=MSG_WAITALL) == (b"", 0, False)
    source = Source(*parts)
    kernel = KernelTLSReader(source, INFO)
    assert receive(kernel, 25) == (b"a" * 10, DATA, True)
    assert source.calls == 1


def test_waiting_for_all_before_a_record_that_is_wrong() -> None:
    """The data first, in one call."""
    kernel = KernelTLSReader(Source(sealed_all(data(b"ab")), sealed_all(data(b"cd"))), INFO)
    assert receive(kernel, flags=MSG_WAITALL) == (b"ab", DATA, True)
    fails(kernel, errno.EBADMSG)
    kernel = KernelTLSReader(Source(sealed_all(data(b"ab"), Record(HANDSHAKE, KEY_UPDATE)), b"more"), INFO)
    assert receive(kernel, flags=MSG_WAITALL) == (b"ab", DATA, True)


def test_an_interrupt_while_waiting_for_all() -> None:
    """It is raised, with the count of what came before it."""
    wire = sealed_all(data(b"abc"), data(b"def"))
    kernel = KernelTLSReader(Source(wire[:25], KeyboardInterrupt(), wire[25:]), INFO)
    with pytest.raises(KeyboardInterrupt) as caught:
        kernel.recvmsg(room(6), flags=MSG_WAITALL)
    assert getattr(caught.value, "transferred", 0) == 3
    assert receive(kernel) == (b"def", DATA, True)


def test_peeking_at_a_key_update() -> None:
    """It may be peeked at and read; the new keys can be set as soon as it has been decrypted."""
    kernel = reader(data(b"old"), Record(HANDSHAKE, KEY_UPDATE), data(b"new"))
    assert peek(kernel) == (b"old", DATA, False)
    kernel.set_crypto_info(CryptoInfo(SECRET.next().record_keys()))
    assert receive(kernel) == (b"old", DATA, True)
    assert peek(kernel) == (KEY_UPDATE, HANDSHAKE, True)
    assert receive(kernel) == (KEY_UPDATE, HANDSHAKE, True)
    assert receive(kernel) == (b"new", DATA, True)


def test_a_peek_into_memory_that_faults() -> None:
    """What was copied is counted, and nothing is taken."""
    kernel = reader(data(b"abc"), data(b"defg"))
    memory = FaultyMemory("segv")
    for _ in range(2):
        with pytest.raises(HostFaultError) as caught:
            kernel.recvmsg(BlockSeq.of(memory.block(20, 5)), flags=MSG_PEEK)
        assert (caught.value.transferred, memory.before_edge(5)) == (5, b"abcde")
    assert receive(kernel) == (b"abcdefg", DATA, True)


def test_poll_and_close_after_a_peek() -> None:
    """What was peeked at can be read, and is gone with the reader."""
    kernel = reader(Record(ALERT, CLOSE_NOTIFY))
    assert not kernel.readable()
    assert peek(kernel) == (CLOSE_NOTIFY, ALERT, False)
    assert kernel.readable()
    kernel.close()
    fails(kernel, errno.EBADF)


def test_the_error_queue_is_empty() -> None:
    """MSG_ERRQUEUE is EAGAIN, and touches nothing."""
    kernel = reader(data(b"ab"))
    with pytest.raises(BlockingIOError):
        kernel.recvmsg(room(9), flags=MSG_ERRQUEUE)
    assert kernel.recvmsg(BlockSeq(), flags=MSG_PEEK) == END
    assert receive(kernel) == (b"ab", DATA, True)


@given(
    contents=st.lists(st.binary(min_size=1, max_size=9), max_size=8),
    calls=st.lists(st.tuples(st.integers(1, 30), st.sampled_from([0, MSG_PEEK, MSG_WAITALL, MSG_PEEK | MSG_WAITALL]))),
    cut=st.integers(1, 60),
)
def test_any_flags_in_any_calls(contents: list[bytes], calls: list[tuple[int, int]], cut: int) -> None:
    """A peek gives the start of what the next calls read; to wait for all gives all, but at the end."""
    wire = sealed_all(*map(data, contents))
    kernel = KernelTLSReader(
        Source(*(wire[at : at + cut] for at in range(0, len(wire), cut))), INFO, buffer_size=16_645
    )
    left = b"".join(contents)
    for size, flags in calls:
        content, _, _ = receive(kernel, size, flags=flags)
        assert content == left[: len(content)]
        assert bool(content) == bool(left)
        if flags & MSG_WAITALL:
            assert content == left[:size]
        if not flags & MSG_PEEK:
            left = left[len(content) :]
    assert receive(kernel, 100, flags=MSG_WAITALL)[0] == left
