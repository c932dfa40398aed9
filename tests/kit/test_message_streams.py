"""The message form of check_reader and check_writer passes our endpoints, and catches what is broken in one way."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from datagram_ends import one, pair
from message_mutants import (
    FAILING_MESSAGE_READER_MUTANTS,
    FAILING_MESSAGE_WRITER_MUTANTS,
    MESSAGE_READER_MUTANTS,
    MESSAGE_WRITER_MUTANTS,
    MESSAGES,
    Mailbox,
    Messages,
)
from safemem import BlockSeqReader
from safemem.block_seq import EMPTY, BlockSeq
from safemem.datagram import DatagramEndpoint, DatagramReader, DatagramWriter, MemoryDatagram, datagram_pair
from sample_blocks import room
from stream_mutants import Sink
from usermem.testing import check_reader, check_writer

KINDS = ["unix", "inet", "pair", "memory"]
SHORT = [message for message in MESSAGES if len(message) < 1000]
CAUGHT_BY = {
    "one message a call, as much of it as there is room for": [
        "FaultLosesTheMessage",
        "FaultLosesWhatWasCopied",
        "RestOfAMessageComesNext",
        "TwoMessagesInOne",
        "SkipsEmptyMessages",
        "CountsWhatFoundNoRoom",
        "CountsNothing",
        "SendsTheFirstBlock",
    ],
    "a fault counts the bytes before it": ["FaultOfAMessageCountsNothing"],
    "a message that reaches memory which faults is a fault": ["FaultIsAShortMessage", "SendsAShortMessage"],
    "memory that a message does not reach is no fault": ["TouchesMemoryThatItDoesNotNeed"],
    "would-block comes to an end": ["EmptyMessagesBlock"],
    "no message is would-block, or what was announced": ["NoMessageIsAnEmptyOne"],
    "nothing behind the count is touched": ["TouchesBehindTheMessage"],
    "each message once, in order": ["GivesTheFirstMessageAgain"],
    "no error but the one that was announced": ["AnotherErrorForAMessage", "ErrorOfAnotherKind"],
    "all messages before the error": ["ErrorBeforeTheLastMessage"],
    "each message has arrived, whole and once": [
        "SendsWhatCameBeforeAFault",
        "DropsEmptyMessages",
        "SendsTwice",
        "SendsABlockAMessage",
    ],
    "the blocks of a Writer are not changed": ["WipesTheMessage"],
    "a message goes whole or not at all": ["ErrorThatCountsBytes"],
    "the error that was announced comes": ["ErrorThatDoesNotCome"],
}
RULE_OF = {name: rule for rule, names in CAUGHT_BY.items() for name in names}


@contextmanager
def ends(kind: str, folder: Path) -> Iterator[tuple[DatagramEndpoint, DatagramEndpoint]]:
    """(one that receives, one that sends to it)."""
    if kind == "memory":
        both = MemoryDatagram()
        yield both, both
    elif kind == "pair":
        yield datagram_pair(1 << 20)
    else:
        with pair(kind, folder) as found:
            for end in found:
                end.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            yield found


def drained(endpoint: DatagramEndpoint, found: list[bytes]) -> list[bytes]:
    """The list, and what has come since."""
    with suppress(BlockingIOError):
        while True:
            found.append(endpoint.recvmsg(room(1 << 17)).data.tobytes())
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("messages", [MESSAGES, SHORT, []])
def test_endpoints_conform(kind: str, messages: list[bytes], tmp_path: Path) -> None:
    """Each gives what was sent, into memory of every shape, and takes it out of such memory."""
    if kind == "inet" and messages is MESSAGES:
        messages = SHORT  # UDP has no longer ones
    with ends(kind, tmp_path) as (receiver, sender):

        def reader() -> DatagramReader:
            assert drained(receiver, []) == []
            for message in messages:
                sender.sendmsg(one(message) if message else EMPTY)
            return DatagramReader(receiver)

        check_reader(reader, messages=messages)

        def writer() -> tuple[DatagramWriter, Callable[[], list[bytes]]]:
            found: list[bytes] = []
            return DatagramWriter(sender), lambda: drained(receiver, found)

        check_writer(writer, messages=messages)


def test_the_end_of_an_endpoint() -> None:
    """An error that was announced, behind the last message of a Reader and for each of a Writer."""
    check_reader(lambda: Messages(BrokenPipeError), error=BrokenPipeError, messages=MESSAGES)

    def broken() -> tuple[DatagramWriter, Callable[[], list[bytes]]]:
        here, there = datagram_pair()
        there.close()
        return DatagramWriter(here), list

    check_writer(broken, error=BrokenPipeError, messages=SHORT)


def test_each_kind_has_its_form() -> None:
    """A ValueError for messages from a byte stream, and the other way round, and for neither."""
    with pytest.raises(ValueError, match="must be message-oriented"):
        check_reader(lambda: BlockSeqReader(BlockSeq()), messages=[b"x"])
    with pytest.raises(ValueError, match="must be message-oriented"):
        check_writer(lambda: (Sink(1), list), messages=[b"x"])
    with pytest.raises(ValueError, match="message-oriented"):
        check_writer(lambda: (Mailbox(), bytes))
    with pytest.raises(ValueError, match="stream or messages"):
        check_reader(Messages)


def test_every_message_mutant_is_in_the_table() -> None:
    """Once."""
    mutants = [
        *MESSAGE_READER_MUTANTS,
        *FAILING_MESSAGE_READER_MUTANTS,
        *MESSAGE_WRITER_MUTANTS,
        *FAILING_MESSAGE_WRITER_MUTANTS,
    ]
    names = [name for names in CAUGHT_BY.values() for name in names]
    assert sorted(mutant.__name__ for mutant in mutants) == sorted(names)


@contextmanager
def caught(mutant: type) -> Iterator[None]:
    """By the check that is meant for it."""
    with pytest.raises(AssertionError, match=r"(?s)\n  shape .*after \d+ messages\n.*it gave .*must give ") as error:
        yield
    assert str(error.value).splitlines()[0] == RULE_OF[mutant.__name__]


@pytest.mark.parametrize("mutant", MESSAGE_READER_MUTANTS, ids=lambda mutant: mutant.__name__)
def test_every_broken_message_reader_is_caught(mutant: type[Messages]) -> None:
    """By the rule in the table."""
    with caught(mutant):
        check_reader(mutant, messages=MESSAGES)


@pytest.mark.parametrize("mutant", FAILING_MESSAGE_READER_MUTANTS, ids=lambda mutant: mutant.__name__)
def test_every_broken_failing_message_reader_is_caught(mutant: type[Messages]) -> None:
    """By the rule in the table."""
    with caught(mutant):
        check_reader(lambda: mutant(BrokenPipeError), error=BrokenPipeError, messages=MESSAGES)


@pytest.mark.parametrize(
    "mutant", [*MESSAGE_WRITER_MUTANTS, *FAILING_MESSAGE_WRITER_MUTANTS], ids=lambda mutant: mutant.__name__
)
def test_every_broken_message_writer_is_caught(mutant: type[Mailbox]) -> None:
    """By the rule in the table."""
    fails = mutant in FAILING_MESSAGE_WRITER_MUTANTS

    def make() -> tuple[Mailbox, Callable[[], list[bytes]]]:
        writer = mutant(3) if fails else mutant()
        return writer, lambda: list(writer.arrived)

    with caught(mutant):
        check_writer(make, error=BrokenPipeError if fails else None, messages=MESSAGES)
