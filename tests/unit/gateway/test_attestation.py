import asyncio
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.gateway.world import FakeAgent, certificate, offered

from antechamber.gateway.agent_link import AgentLink, Verdict
from antechamber.gateway.answers import RequestRefused
from antechamber.gateway.attestation import (
    MAX_CLIENTS,
    NonceLimits,
    Seen,
    TokenBucket,
    Verdicts,
    admit,
    demanded,
    nonce_of,
)

GOOD = Verdict(True, 1.0, "AAAA", "00" * 32, {})


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_verdicts_asks_once_a_second_and_adds_the_time_since(tmp_path: Path) -> None:
    key, leaf = certificate()
    agent, clock = FakeAgent(f"{tmp_path}/agent.sock", offered(1, leaf, "/e"), key), Clock()

    async def ages() -> list[float]:
        verdicts, seen = Verdicts(AgentLink(agent.path), clock), []
        for step in (0, 0.5, 0.4, 0.2, 1.5):
            clock.now += step
            seen.append((await verdicts.current()).age_s)
        return seen

    assert asyncio.run(ages()) == pytest.approx([1.0, 1.5, 1.9, 1.0, 1.0])
    agent.close()
    assert agent.asked == ["verdict"] * 3


def test_verdicts_asks_a_silent_agent_once_a_second_too(tmp_path: Path) -> None:
    key, leaf = certificate()
    agent, clock = FakeAgent(f"{tmp_path}/agent.sock", offered(1, leaf, "/e"), key), Clock()
    agent.silent = True

    async def ask() -> None:
        verdicts = Verdicts(AgentLink(agent.path), clock)
        for _ in range(5):
            with pytest.raises(RequestRefused) as refused:
                await verdicts.current()
            assert refused.value.code == "attestation.unavailable"
        assert verdicts.known() == {}

    asyncio.run(ask())
    agent.close()
    assert agent.asked == ["verdict"]


def test_verdicts_does_not_fall_back_on_an_old_verdict_when_the_agent_is_silent(tmp_path: Path) -> None:
    key, leaf = certificate()
    agent, clock = FakeAgent(f"{tmp_path}/agent.sock", offered(1, leaf, "/e"), key), Clock()

    async def ask() -> None:
        verdicts = Verdicts(AgentLink(agent.path), clock)
        await verdicts.current()
        agent.silent = True
        clock.now += 1.1
        for _ in range(2):
            with pytest.raises(RequestRefused):
                await verdicts.current()
        assert verdicts.known() == {"x-tdx-quote-sha256": agent.digest}

    asyncio.run(ask())
    agent.close()


def test_admit_lets_pass_at_the_limit_and_not_beyond() -> None:
    assert admit(Seen(GOOD, 300.0), True, 300) == {"x-tdx-quote": "AAAA"}
    assert admit(Seen(GOOD, 301.0), False, 300) == {}
    for age in (300.001, float("nan"), float("inf")):
        with pytest.raises(RequestRefused) as refused:
            admit(Seen(GOOD, age), True, 300)
        assert refused.value.code == "attestation.stale"


def test_bucket_refills_at_its_rate() -> None:
    clock = Clock()
    bucket = TokenBucket(2, clock)
    bucket.take()
    bucket.take()
    with pytest.raises(RequestRefused) as refused:
        bucket.take()
    assert (refused.value.status, refused.value.headers) == (429, {"retry-after": "30"})
    clock.now += 30
    bucket.take()
    clock.now += 3600
    bucket.take()
    bucket.take()
    with pytest.raises(RequestRefused):
        bucket.take()


def test_limits_are_a_clients_own_and_one_for_all() -> None:
    clock = Clock()
    limits = NonceLimits(2, clock)
    for host in range(4):
        limits.take(f"192.0.2.{host}")
        limits.take(f"192.0.2.{host}")
        with pytest.raises(RequestRefused) as refused:
            limits.take(f"192.0.2.{host}")
        assert refused.value.headers == {"retry-after": "30"}
    with pytest.raises(RequestRefused) as refused:
        limits.take("192.0.2.200")
    assert (refused.value.code, refused.value.headers) == ("attestation.rate", {"retry-after": "8"})


def test_limits_keep_a_bounded_table() -> None:
    limits = NonceLimits(1, Clock())
    for number in range(2 * MAX_CLIENTS):
        with suppress(RequestRefused):
            limits.take(f"10.0.{number >> 8}.{number & 255}")
    assert len(limits._clients) == MAX_CLIENTS


@given(st.text(max_size=200) | st.from_regex(r"nonce=[0-9a-fA-F]{0,140}", fullmatch=True))
def test_nonce_parses_or_refuses_any_query(query: str) -> None:
    with suppress(RequestRefused):
        assert 16 <= len(bytes.fromhex(nonce_of(query))) <= 64


@given(st.lists(st.text(max_size=12) | st.just("required"), max_size=3))
def test_demand_is_one_exact_word(values: list[str]) -> None:
    if values in ([], ["required"]):
        assert demanded(values) == bool(values)
    else:
        with pytest.raises(RequestRefused) as refused:
            demanded(values)
        assert refused.value.code == "request.attestation"
