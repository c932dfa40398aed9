"""Traffic secrets, keys and key updates: the published traces of RFC 8448, and an implementation that is not ours."""

from __future__ import annotations

import hashlib
import pickle
import struct

import pytest
from attrs import frozen
from attrs.exceptions import FrozenInstanceError
from hypothesis import given
from hypothesis import strategies as st

from safemem.tls import SUITES, CipherSuite, NewSessionTicket, RecordKeys, TLSReader, TrafficSecret, engine
from safemem.tls.keys import hkdf_expand_label
from safemem.tls.record import HEADER
from tls_wire import ENGINES, Script, read

AES_128 = SUITES["TLS_AES_128_GCM_SHA256"]
every_suite = pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.cipher)
every_engine = pytest.mark.parametrize("name", ENGINES)


@frozen
class Trace:
    """A secret of RFC 8448 section 3, and what it says follows from it."""

    secret: bytes
    key: bytes
    iv: bytes


def trace(secret: str, key: str, iv: str) -> Trace:
    """From hexadecimal."""
    return Trace(*map(bytes.fromhex, (secret, key, iv)))


CLIENT_HANDSHAKE = trace(
    "b3eddb126e067f35a780b3abf45e2d8f3b1a950738f52e9600746a0e27a55a21",
    "dbfaa693d1762c5b666af5d950258d01",
    "5bd3c71b836e0b76bb73265f",
)
SERVER_HANDSHAKE = trace(
    "b67b7d690cc16c4e75e54213cb2d37b4e9c912bcded9105d42befd59d391ad38",
    "3fce516009c21727d0f2e4e86ee403bc",
    "5d313eb2671276ee13000b30",
)
CLIENT = trace(
    "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5",
    "17422dda596ed5d9acd890e3c63f5051",
    "5b78923dee08579033e523d9",
)
SERVER = trace(
    "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643",
    "9f02283b6c9c07efc26bb9f2ac92e356",
    "cf782b88dd83549aadf1e984",
)
TRACES = [CLIENT_HANDSHAKE, SERVER_HANDSHAKE, CLIENT, SERVER]

CLIENT_FINISHED = bytes.fromhex(
    "170303003575ec4dc238cce60b298044a71e219c56cc77b0517fe9b93c7a4bfc44d87f38f80338ac98fc46deb384bd1caeacab6867d726c4"
    "0546"
)
VERIFY_DATA = bytes.fromhex("a8ec436d677634ae525ac1fcebe11a039ec17694fac6e98527b642f2edd5ce61")
SERVER_TICKET = bytes.fromhex(
    "17030300de3a6b8f90414a97d6959c3487680de5134a2b240e6cffac116e95d41d6af8f6b580dcf3d11d63c758db289a015940252f55713e"
    "061dc13e078891a38efbcf5753ad8ef170ad3c7353d16d9da773b9ca7f2b9fa1b6c0d4a3d03f75e09c30ba1e62972ac46f75f7b981be6343"
    "9b2999ce13064615139891d5e4c5b406f16e3fc181a77ca475840025db2f0a77f81b5ab05b94c01346755f69232c86519d86cbeeac87aac3"
    "47d143f9605d64f650db4d023e70e952ca49fe5137121c74bc2697687e248746d6df353005f3bce18696129c8153556b3b6c6779b37bf159"
    "85684f"
)
CLIENT_DATA = bytes.fromhex(
    "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e2b62974e1f5a6292a2"
    "977014bd1e3deae63aeebb21694915e4"
)
SERVER_DATA = bytes.fromhex(
    "17030300432e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36e30efaf97d90e6dffc602dcb501a59a8fcc49c4bf2e5f0a2"
    "1c0047c2abf332540dd032e167c2955d"
)
CLIENT_CLOSE = bytes.fromhex("1703030013c9872760655666b74d7ff1153efd6db6d0b0e3")
SERVER_CLOSE = bytes.fromhex("1703030013b58fd67166ebf599d24720cfbe7efa7a8864a9")


@pytest.mark.parametrize("expected", TRACES)
def test_the_published_traffic_keys(expected: Trace) -> None:
    """Key and IV follow from the secret; the number of the record stays."""
    keys = TrafficSecret(AES_128, expected.secret, 5).record_keys()
    assert keys == RecordKeys(AES_128, expected.key, expected.iv, 5)
    assert keys.record_keys() is keys


def test_the_published_secrets() -> None:
    """HKDF-Expand-Label with a context: both application secrets follow from the master secret."""
    master = bytes.fromhex("18df06843d13a08bf2a449844c5f8a478001bc4d4c627984d5a41da8d0402919")
    transcript = bytes.fromhex("9608102a0f1ccc6db6250b7b7e417b1a000eaada3daae4777a7686c9ff83df13")
    assert hkdf_expand_label(AES_128, master, "c ap traffic", transcript, 32) == CLIENT.secret
    assert hkdf_expand_label(AES_128, master, "s ap traffic", transcript, 32) == SERVER.secret


@every_engine
def test_the_published_finished_record(name: str) -> None:
    """A handshake record is authentic under the handshake's key, and holds what the trace says."""
    buffer = memoryview(bytearray(CLIENT_FINISHED))
    opener = engine(name).opener(TrafficSecret(AES_128, CLIENT_HANDSHAKE.secret).record_keys(), buffer)
    assert opener.open(0, CLIENT_FINISHED[:HEADER], HEADER, len(buffer) - HEADER, opener.target(buffer), HEADER)
    assert buffer[HEADER:-16] == b"\x14\x00\x00\x20" + VERIFY_DATA + b"\x16"


@every_engine
@pytest.mark.parametrize("release", ["verified", "direct"])
def test_the_published_connection(name: str, release: str) -> None:
    """Both directions are read from their first record to close_notify, with the server's ticket."""
    tickets: list[NewSessionTicket] = []
    ours = TLSReader(
        Script(SERVER_TICKET + SERVER_DATA + SERVER_CLOSE),
        TrafficSecret(AES_128, SERVER.secret),
        release="direct" if release == "direct" else "verified",
        on_ticket=tickets.append,
        engine_name=name,
    )
    theirs = TLSReader(
        Script(CLIENT_DATA + CLIENT_CLOSE), TrafficSecret(AES_128, CLIENT.secret), server_side=True, engine_name=name
    )
    for reader in (ours, theirs):
        assert [read(reader, 100), read(reader, 100)] == [bytes(range(50)), b""]
        assert reader.eof
    (found,) = tickets
    assert (found.lifetime, found.age_add, found.nonce, len(found.ticket)) == (30, 0xFAD6AAC5, b"\0\0", 178)
    assert found.extensions == bytes.fromhex("002a000400000400")


def test_from_the_middle() -> None:
    """A secret with a number reads on from that record."""
    reader = TLSReader(Script(SERVER_DATA + SERVER_CLOSE), TrafficSecret(AES_128, SERVER.secret, 1))
    assert [read(reader, 100), read(reader, 100)] == [bytes(range(50)), b""]


@every_suite
def test_against_another_hkdf(suite: CipherSuite) -> None:
    """Keys, IV and the secret after a key update are those of another HKDF, for every hash."""
    hkdf = pytest.importorskip("cryptography.hazmat.primitives.kdf.hkdf", reason="needs the cryptography package")
    hashes = pytest.importorskip("cryptography.hazmat.primitives.hashes")
    secret = hashlib.shake_128(suite.name.encode()).digest(suite.hash_length)

    def derive(label: bytes, length: int) -> bytes:
        info = struct.pack(">HB", length, 6 + len(label)) + b"tls13 " + label + b"\0"
        algorithm = hashes.SHA384() if suite.hash == "sha384" else hashes.SHA256()
        derived: bytes = hkdf.HKDFExpand(algorithm, length, info).derive(secret)
        return derived

    traffic = TrafficSecret(suite, secret, 77)
    expected = RecordKeys(suite, derive(b"key", suite.key_length), derive(b"iv", 12), 77)
    assert traffic.record_keys() == expected
    assert traffic.next() == TrafficSecret(suite, derive(b"traffic upd", suite.hash_length), 0)
    assert hkdf_expand_label(suite, secret, "key", b"", 200) == derive(b"key", 200)


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=48), st.integers(0, 255 * 32))
def test_expand_is_a_prefix_of_the_longest(secret: bytes, context: bytes, length: int) -> None:
    """Whatever the length: as many bytes as were asked for, and others for another length."""
    found = hkdf_expand_label(AES_128, secret, "label", context, length)
    assert len(found) == length
    if length > 8:
        assert hkdf_expand_label(AES_128, secret, "label", context, length - 1) != found[:-1]


@every_suite
def test_key_updates_follow_one_another(suite: CipherSuite) -> None:
    """Each gives another secret and counts from 0; from a key alone none follows."""
    secret = TrafficSecret(suite, bytes(suite.hash_length), 9)
    chain = [secret, secret.next(), secret.next().next()]
    assert len({one.secret for one in chain}) == len({one.record_keys().key for one in chain}) == 3
    assert [one.seq for one in chain] == [9, 0, 0]
    assert secret.record_keys().next() is None  # type: ignore[func-returns-value]


@every_suite
def test_lengths_are_checked(suite: CipherSuite) -> None:
    """The message names the cipher suite and both lengths, and no secret."""
    key, iv, secret = bytes(suite.key_length), bytes(12), bytes(suite.hash_length)
    assert len(secret) == hashlib.new(suite.hash).digest_size
    for wrong_key, wrong_iv in ((key + b"K", iv), (key[1:], iv), (b"", iv), (key, iv + b"I"), (key, iv[1:])):
        with pytest.raises(ValueError, match=f"{suite.name}.*{len(wrong_key)} and {len(wrong_iv)}"):
            RecordKeys(suite, wrong_key, wrong_iv)
    for wrong in (secret + b"S", secret[1:], b"", bytes(16)):
        with pytest.raises(ValueError, match=f"{suite.name}.*{suite.hash_length} bytes, not {len(wrong)}"):
            TrafficSecret(suite, wrong)


@pytest.mark.parametrize("seq", [-1, 1 << 64, -(1 << 64)])
def test_record_numbers_are_checked(seq: int) -> None:
    """They have 64 bits."""
    with pytest.raises(ValueError, match=r"seq must lie in 0 to 2\*\*64 - 1"):
        RecordKeys(AES_128, bytes(16), bytes(12), seq)
    with pytest.raises(ValueError, match="seq must lie"):
        TrafficSecret(AES_128, bytes(32), seq)
    assert TrafficSecret(AES_128, bytes(32), (1 << 64) - 1).record_keys().seq == (1 << 64) - 1


def test_secrets_are_not_shown() -> None:
    """Not by repr and str; equality, hash and pickling know them."""
    secret = TrafficSecret(AES_128, b"S" * 32, 3)
    keys = RecordKeys(AES_128, b"K" * 16, b"I" * 12, 3)
    shown = f"{secret!r} {keys!r} {secret} {keys}"
    for hidden in ("SSS", "KKK", "III", "535353", "4b4b4b", "494949"):
        assert hidden not in shown
    assert "TLS_AES_128_GCM_SHA256" in shown
    assert "seq=3" in shown
    assert (pickle.loads(pickle.dumps(secret)), pickle.loads(pickle.dumps(keys))) == (secret, keys)
    assert len({secret, TrafficSecret(AES_128, b"S" * 32, 3), TrafficSecret(AES_128, b"T" * 32, 3)}) == 2
    with pytest.raises(FrozenInstanceError):
        secret.seq = 4  # type: ignore[misc]


def test_the_suites() -> None:
    """Names, numbers and lengths as IANA and RFC 8446 section B.4 have them."""
    assert {name: (suite.number, suite.key_length, suite.hash_length) for name, suite in SUITES.items()} == {
        "TLS_AES_128_GCM_SHA256": (0x1301, 16, 32),
        "TLS_AES_256_GCM_SHA384": (0x1302, 32, 48),
        "TLS_CHACHA20_POLY1305_SHA256": (0x1303, 32, 32),
    }
    assert all(suite.name == name for name, suite in SUITES.items())
