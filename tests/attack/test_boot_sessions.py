"""A broker that forgets sessions in the middle of a boot, by itself or because somebody makes it."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from boots import Around, World, world

from antechamber.errors import AgentError, BrokerUnreachable
from antechamber.evidence.composite import GpuEvidence
from antechamber.ports import Hardware, KeyBroker


@pytest.fixture(scope="module")
def here() -> Iterator[World]:
    with world() as made:
        yield made


def refused(here: World, **around: object) -> str:
    with pytest.raises(AgentError) as caught:
        here.boot(**around)  # type: ignore[arg-type]
    assert not here.plaintext
    return caught.value.code


def losing(sessions: int, asked: list[str]) -> Callable[[KeyBroker], KeyBroker]:
    """A broker that forgets its sessions so many times, between /attest and the first GET."""

    def around(broker: KeyBroker) -> KeyBroker:
        def challenge() -> str:
            asked.append(broker.challenge())
            return asked[-1]

        def certify(request: bytes) -> bytes:
            if len(asked) <= sessions:
                raise BrokerUnreachable("broker.session", "TokenNotFound", hint="attest again")
            return broker.certify(request)

        return Around(broker, challenge=challenge, certify=certify)

    return around


def test_lost_session_is_opened_again_over_a_fresh_nonce(here: World) -> None:
    asked: list[str] = []
    here.boot(broker=losing(2, asked))
    assert here.plaintext
    assert len(set(asked)) == 3
    assert [d for d, _ in here.rig.decisions()][-4:] == ["attested", "attested", "certified", "released"]


def test_session_is_opened_three_times_at_most(here: World) -> None:
    asked: list[str] = []
    assert refused(here, broker=losing(9, asked)) == "broker.session"
    assert len(asked) == 3


def test_another_gpu_is_refused_when_the_session_is_opened_again(here: World) -> None:
    """A host that makes the broker forget, and swaps the GPU before the second proof."""
    asked: list[str] = []
    others = here.machine(gpus=2)

    def swapping(hw: Hardware) -> Hardware:
        def collect(nonce: bytes) -> tuple[GpuEvidence, ...]:
            return others.collect(nonce)[1:] if len(asked) > 1 else hw.gpus.collect(nonce)

        return replace(hw, gpus=Around(hw.gpus, collect=collect))

    assert refused(here, hardware=swapping, broker=losing(1, asked)) == "gpu.changed"


def test_refused_evidence_is_not_sent_again(here: World) -> None:
    asked: list[str] = []

    def stale(hw: Hardware) -> Hardware:
        return replace(hw, quotes=Around(hw.quotes, quote=lambda bound: hw.quotes.quote(bytes(64))))

    assert refused(here, hardware=stale, broker=losing(0, asked)) == "broker.attest"
    assert len(asked) == 1
