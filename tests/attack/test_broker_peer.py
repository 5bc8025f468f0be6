"""Who may not be the broker: another certificate, another name, another CA."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import NAMES, Rig, running, serving

from antechamber.broker.authority import Authority
from antechamber.errors import BrokerUnreachable


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with running(tmp_path / "broker") as rig:
        yield rig


def code_with(rig: Rig, certificate: bytes, key: bytes) -> str:
    """What a guest makes of a broker that shows this certificate."""
    for name, content in (("server.pem", certificate), ("server.key", key)):
        path = rig.directory / name
        path.unlink()
        path.touch(mode=0o600)
        path.write_bytes(content)
    with serving(rig.directory, rig.intel, rig.nvidia) as shown, pytest.raises(BrokerUnreachable) as refused:
        shown.kbs().challenge()
    return refused.value.code


def own_ca(rig: Rig) -> Authority:
    return Authority.load(*((rig.directory / f"broker-ca.{end}").read_bytes() for end in ("pem", "key")))


def test_certificate_that_is_over_is_refused(rig: Rig) -> None:
    assert code_with(rig, *own_ca(rig).serve(NAMES, now=int(time.time()) - 90 * 86400, days=30)) == "broker.tls"


def test_certificate_that_signs_itself_is_refused(rig: Rig) -> None:
    assert code_with(rig, *Authority.create("localhost", now=int(time.time())).pem()) == "broker.tls"


def test_certificate_for_another_name_is_refused(rig: Rig) -> None:
    assert code_with(rig, *own_ca(rig).serve(["other.example.org"], now=int(time.time()), days=30)) == "broker.tls"


def test_certificate_of_another_ca_of_the_same_name_is_refused(rig: Rig) -> None:
    other = Authority.create("Antechamber broker CA", now=int(time.time()))
    assert code_with(rig, *other.serve(NAMES, now=int(time.time()), days=30)) == "broker.tls"
