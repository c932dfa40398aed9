"""Which AEAD engine is chosen, and why none is."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest

from safemem.tls import EngineError, RecordKeys, aead, engine
from safemem.tls.engines import libcrypto
from safemem.tls.engines.engine import Engine, Open, Opener, Sealer
from tls_wire import ENGINES

every_engine = pytest.mark.parametrize("name", ENGINES)
AEADS = "cryptography.hazmat.primitives.ciphers.aead"
needs_libcrypto = pytest.mark.skipif("libcrypto" not in ENGINES, reason="this host has no libcrypto to be loaded")


@pytest.fixture
def fresh() -> Iterator[None]:
    """No engine has been chosen yet, and none is afterwards."""
    aead._tried.cache_clear()
    yield
    aead._tried.cache_clear()


def test_no_engine_is_passed_over() -> None:
    """All other tests use what can be used: here is why something could not, if so, and it is no wrong answer."""
    for name in aead.NAMES:
        try:
            engine(name)
        except EngineError as exc:
            assert name not in ENGINES
            assert any(reason in str(exc) for reason in ("not installed", "cannot decrypt", "no libcrypto", "no ssl"))
        else:
            assert name in ENGINES


@every_engine
def test_forced_names(name: str) -> None:
    """The engine that was asked for, the same one each time."""
    assert engine(name).name == name
    assert engine(name) is engine(name)
    assert any(char.isdigit() for char in engine(name).version())


def test_the_first_that_can_be_used() -> None:
    """cryptography is quicker."""
    assert engine().name == min(ENGINES)
    assert engine() is engine()


@pytest.mark.parametrize("name", ["", "openssl", "Libcrypto", "libcrypto "])
def test_unknown_names(name: str) -> None:
    """The message tells what there is."""
    with pytest.raises(ValueError, match="one of cryptography, libcrypto, not"):
        engine(name)


@needs_libcrypto
@pytest.mark.skipif(sys.platform != "linux", reason="names of Linux's linker")
def test_names_of_libcrypto(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python's ssl does not tell, one of the names is the library's: nothing has to be run to find it."""
    monkeypatch.setattr(subprocess, "Popen", None)
    names = [name for name in libcrypto._candidates() if "/" not in name]
    loaded = []
    for name in names:
        with suppress(OSError):
            loaded.append(ctypes.CDLL(name))
    assert loaded


@needs_libcrypto
@pytest.mark.usefixtures("fresh")
def test_without_cryptography(monkeypatch: pytest.MonkeyPatch) -> None:
    """libcrypto is taken; who wants cryptography is told how to get it."""
    monkeypatch.setitem(sys.modules, "cryptography", None)
    assert engine().name == "libcrypto"
    with pytest.raises(EngineError, match=r"^cryptography: .* is not installed\. Install .*pip install"):
        engine("cryptography")


@pytest.mark.usefixtures("fresh")
def test_an_old_cryptography(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot write into buffers is not taken."""
    ciphers = pytest.importorskip(
        "cryptography.hazmat.primitives.ciphers.aead", reason="needs the cryptography package"
    )

    class AESGCM:
        """Without decrypt_into."""

    monkeypatch.setattr(ciphers, "AESGCM", AESGCM)
    with pytest.raises(EngineError, match="cannot decrypt into a buffer: install a newer"):
        engine("cryptography")


@pytest.mark.usefixtures("fresh")
def test_no_engine_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says why for each, what to install, and what works without; it is not looked for again."""
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.setattr("safemem.tls.engines.libcrypto._candidates", lambda: iter(["/no/such/libcrypto.so"]))
    with pytest.raises(EngineError) as caught:
        engine()
    for part in (
        "cryptography: ",
        "libcrypto: no libcrypto of OpenSSL 1.1.1",
        "pip install cryptography",
        "SSLObjectR",
    ):
        assert part in str(caught.value)
    monkeypatch.undo()
    with pytest.raises(EngineError):
        engine()


@pytest.mark.usefixtures("fresh")
def test_no_ssl_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then libcrypto is not looked for."""
    monkeypatch.setitem(sys.modules, "_ssl", None)
    with pytest.raises(EngineError, match="no ssl module"):
        engine("libcrypto")


@needs_libcrypto
@pytest.mark.usefixtures("fresh")
def test_a_libcrypto_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is passed over."""
    monkeypatch.setattr("safemem.tls.engines.libcrypto._MIN_VERSION", 1 << 62)
    with pytest.raises(EngineError, match=r"1\.1\.1 or later"):
        engine("libcrypto")


class Broken:
    """An engine that does something wrong."""

    name = "broken"

    def __init__(self, fault: str) -> None:
        self._fault = fault
        self._right = engine(ENGINES[0])

    def version(self) -> str:
        """See engine.Engine."""
        return "broken 1.0"

    def opener(self, keys: RecordKeys, buffer: memoryview) -> Opener:
        """See engine.Engine."""
        opener = self._right.opener(keys, buffer)
        right = opener.open
        fault = self._fault
        wrong: dict[str, Open] = {
            "takes anything": lambda *args: right(*args) or True,
            "takes nothing": lambda *args: False,
            "gives nothing": lambda *args: True,
            "refuses what it opens": lambda *args: right(*args) and False,
            "agrees with itself only": lambda seq, *args: right(seq ^ 1, *args),
            "opens another record": lambda seq, *args: right(seq ^ 1, *args),
        }
        opener.open = wrong.get(fault, right)
        return opener

    def sealer(self, keys: RecordKeys, buffer: memoryview) -> Sealer:
        """See engine.Engine."""
        sealer = self._right.sealer(keys, buffer)
        right = sealer.seal
        if self._fault == "seals nothing":
            sealer.seal = lambda *args: None
        elif self._fault in ("seals another record", "agrees with itself only") or (
            self._fault == "only ChaCha20 is wrong" and "CHACHA" in keys.suite.name
        ):
            sealer.seal = lambda seq, *args: right(seq ^ 1, *args)
        return sealer


FAULTS = [
    "takes anything",
    "takes nothing",
    "gives nothing",
    "refuses what it opens",
    "agrees with itself only",
    "opens another record",
    "seals nothing",
    "seals another record",
    "only ChaCha20 is wrong",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_engine_is_not_used(fault: str) -> None:
    """The known answers find it out, and the message names its version and the cipher."""
    broken: Engine = Broken(fault)
    with pytest.raises(EngineError, match=r"broken 1\.0 gives wrong answers for TLS_") as caught:
        aead._checked(broken)
    assert ("CHACHA20" in str(caught.value)) == ("ChaCha20" in fault)


@pytest.mark.usefixtures("fresh")
def test_the_next_engine_if_one_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers are looked at before it is chosen."""
    right = engine(ENGINES[0])
    monkeypatch.setattr(aead, "_load", lambda name: Broken("seals nothing") if name == "cryptography" else right)
    assert engine() is right
    with pytest.raises(EngineError, match=r"cryptography: broken 1\.0 gives wrong"):
        engine("cryptography")
    assert aead._checked(Broken("none")).name == "broken"
