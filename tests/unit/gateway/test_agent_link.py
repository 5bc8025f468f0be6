import asyncio
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.gateway.world import FakeAgent, certificate, offered

from antechamber.errors import AgentError, HardwareUnavailable, PlatformUnfit
from antechamber.gateway import agent_link, tls
from antechamber.gateway.agent_link import AgentLink, AgentRefused

KEY, LEAF = certificate()
TERMS = {"ok": True, **offered(8443, LEAF, "/engine.sock")}


@pytest.fixture
def agent(tmp_path: Path) -> Any:
    fake = FakeAgent(f"{tmp_path}/agent.sock", offered(8443, LEAF, "/engine.sock"), KEY)
    yield fake
    fake.close()


def test_handover_gives_terms_and_a_key_that_loads_once(agent: FakeAgent) -> None:
    given = agent_link.handover(agent.path)
    assert given.terms.listen == "127.0.0.1:8443"
    context = tls.server_context(given)
    assert context.num_tickets == 0
    with pytest.raises(OSError):
        os.fstat(given.key_fd)


def test_handover_leaves_no_descriptor_open_when_it_refuses(agent: FakeAgent) -> None:
    agent.raw, agent.fds = b'{"ok":true}\n', 2
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(PlatformUnfit):
        agent_link.handover(agent.path)
    deadline = time.monotonic() + 5
    while len(os.listdir("/proc/self/fd")) > before and time.monotonic() < deadline:
        time.sleep(0.01)  # the fake closes its own copies
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("change", [{"max_body_bytes": 0}, {"upstream": "engine.sock"}, {"more": 1}, {"listen": 1}])
def test_handover_refuses_terms_that_are_not_sound(agent: FakeAgent, change: dict[str, Any]) -> None:
    agent.raw = json.dumps(TERMS | change).encode() + b"\n"
    with pytest.raises(PlatformUnfit) as refused:
        agent_link.handover(agent.path)
    assert refused.value.code == "gateway.handover"


@given(st.binary(max_size=64))
def test_terms_parse_or_refuse_any_bytes(raw: bytes) -> None:
    with suppress(PlatformUnfit):
        agent_link._terms(raw)


@given(st.binary(max_size=64) | st.from_regex(rb'\{"ok":(true|false|1)(,"code":"[a-z.]{0,9}")?\}', fullmatch=True))
def test_answer_parses_or_refuses_any_bytes(raw: bytes) -> None:
    with suppress(HardwareUnavailable, AgentRefused):
        assert agent_link.parse(raw)["ok"] is True


@pytest.mark.parametrize("code", [None, "", "no code", "a.b\n", "A.b", "a." + "b" * 99])
def test_refusal_without_a_code_is_unreadable(code: str | None) -> None:
    """Whatever stood there became the code that logs and callers see."""
    with pytest.raises(HardwareUnavailable) as refused:
        agent_link.parse(json.dumps({"ok": False, "code": code}).encode())
    assert refused.value.code == "agent.answer"


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("good", "age_s", "quote", "quote_sha256", "short"), JSON)))
def test_verdict_parses_or_refuses_any_json(value: dict[str, Any]) -> None:
    with suppress(AgentError):
        verdict = agent_link._verdict(value)
        assert verdict.age_s >= 0


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("bundle", "sha256"), JSON)))
def test_bundle_parses_or_refuses_any_json(value: dict[str, Any]) -> None:
    with suppress(HardwareUnavailable):
        agent_link._bundle(value)


def test_link_passes_the_agents_own_refusal(agent: FakeAgent) -> None:
    with pytest.raises(AgentRefused) as refused:
        asyncio.run(AgentLink(agent.path).stored("0" * 64))
    assert (refused.value.code, refused.value.exit_status) == ("bundle.unknown", 75)


def test_link_refuses_a_bundle_that_is_another(agent: FakeAgent) -> None:
    agent.raw = json.dumps({"ok": True, "bundle": "{}", "sha256": "1" * 64}).encode() + b"\n"
    with pytest.raises(HardwareUnavailable) as refused:
        asyncio.run(AgentLink(agent.path).stored("0" * 64))
    assert refused.value.code == "agent.answer"


@pytest.mark.parametrize("raw", [b"[]\n", b"{}\n", b'{"ok":1}\n'])
def test_link_refuses_what_is_no_answer(agent: FakeAgent, raw: bytes) -> None:
    agent.raw = raw
    with pytest.raises(HardwareUnavailable) as refused:
        asyncio.run(AgentLink(agent.path).verdict())
    assert refused.value.code == "agent.answer"


def test_link_refuses_an_agent_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(HardwareUnavailable) as refused:
        asyncio.run(AgentLink(f"{tmp_path}/none").verdict())
    assert refused.value.code == "agent.unreachable"


def test_link_refuses_an_answer_without_end(agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_link, "MAX_ANSWER", 1 << 16)
    agent.raw = b"x" * (1 << 18)
    with pytest.raises(HardwareUnavailable) as refused:
        asyncio.run(AgentLink(agent.path).verdict())
    assert refused.value.code == "agent.unreachable"
