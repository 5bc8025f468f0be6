"""Demands and verdicts that must not let a request through. Each test counts what the engine saw."""

import base64
import time

import pytest
from aiohttp import web
from unit.gateway.world import END, QUOTE, World, body, code, running, status

from antechamber.gateway import attestation, door


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rules on a shorter clock."""
    monkeypatch.setattr(attestation, "CACHE_S", 0.05)
    monkeypatch.setattr(door, "LINGER_S", 0.2)


@pytest.mark.parametrize("value", ["Required", "optional", "", "required, required", "true"])
def test_unknown_demand_is_refused(value: str) -> None:
    with running() as world:
        answer, headers, text = world.chat({"x-attestation": value})
    assert (answer, code(text)) == (400, "request.attestation")
    assert headers["x-tdx-quote-sha256"] == world.agent.digest
    assert not world.engine.requests


def test_demand_sent_twice_is_refused() -> None:
    twice = b"X-Attestation: required\r\nx-attestation: required\r\n"
    with running() as world:
        answer = world.raw(b"GET /v1/models HTTP/1.1\r\n" + END + twice + b"\r\n")
    assert code(body(answer)) == "request.attestation"
    assert not world.engine.requests


def demand_without_body(world: World) -> bytes:
    """The refusal comes although the body never does."""
    head = b"POST /v1/completions HTTP/1.1\r\nX-Attestation: required\r\nContent-Length: 9\r\n"
    return world.raw(head + END + b"\r\n")


def test_stale_verdict_refuses_a_demand_before_the_body() -> None:
    with running(verdict_age_s=60) as world:
        world.agent.age_s = 60.1
        time.sleep(0.1)
        refused = world.chat({"x-attestation": "required"})
        assert (refused[0], code(refused[2])) == (503, "attestation.stale")
        answer = demand_without_body(world)
        assert (status(answer), code(body(answer))) == (503, "attestation.stale")
        assert b"x-tdx-quote-sha256: " + world.agent.digest.encode() in answer
        assert b"x-tdx-quote:" not in answer
        assert not world.engine.requests
        assert world.chat()[0] == 200  # without the demand, it is told by digest which quote stands behind it


def test_bad_verdict_serves_nobody() -> None:
    with running() as world:
        world.agent.good = False
        time.sleep(0.1)
        refused = world.chat()
        assert (refused[0], code(refused[2])) == (503, "attestation.failed")
        answer = demand_without_body(world)
        assert (status(answer), code(body(answer))) == (503, "attestation.failed")
    assert not world.engine.requests


def test_verdict_that_turns_bad_while_the_body_comes_refuses() -> None:
    with running() as world, world.connect() as link:
        link.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 2\r\n" + END + b"\r\n{")
        time.sleep(0.2)
        world.agent.good = False
        time.sleep(0.1)
        link.sendall(b"}")
        assert code(body(link.makefile("rb").read())) == "attestation.failed"
    assert not world.engine.requests


def test_quote_that_no_header_takes_refuses_a_demand() -> None:
    with running() as world:
        world.agent.quote = bytes(6200)
        time.sleep(0.1)
        answer, _, text = world.chat({"x-attestation": "required"})
        assert (answer, code(text)) == (503, "attestation.quote-size")
    assert not world.engine.requests


def test_agent_that_breaks_a_header_is_not_believed() -> None:
    with running() as world:
        world.agent.raw = b'{"ok":true,"good":true,"age_s":1,"quote":"AA==\\r\\nx: y","quote_sha256":"","short":{}}\n'
        time.sleep(0.1)
        answer, headers, text = world.chat({"x-attestation": "required"})
    assert (answer, code(text)) == (503, "attestation.unavailable")
    assert "x" not in headers
    assert not world.engine.requests


def test_engine_that_forges_the_quotes_headers_is_not_passed_on() -> None:
    async def forging(_: web.BaseRequest, __: bytes) -> web.StreamResponse:
        return web.json_response({}, headers={"x-tdx-quote": "AAAA", "x-tdx-quote-sha256": "00" * 32, "x-more": "1"})

    with running() as world:
        world.engine.answer = forging
        status, headers, _ = world.chat()
        demanded = world.chat({"x-attestation": "required"})[1]
        assert (status, headers["x-tdx-quote-sha256"]) == (200, world.agent.digest)
        assert not {"x-tdx-quote", "x-more"} & set(headers)
        assert base64.b64decode(demanded["x-tdx-quote"]) == QUOTE


def test_quote_under_anothers_digest_serves_nobody() -> None:
    with running() as world:
        world.agent.raw = b'{"ok":true,"good":true,"age_s":1,"quote":"AAAA","quote_sha256":"'
        world.agent.raw += b"00" * 32 + b'","short":{}}\n'
        time.sleep(0.1)
        answer, _, text = world.chat({"x-attestation": "required"})
    assert (answer, code(text)) == (503, "attestation.unavailable")
    assert not world.engine.requests


@pytest.mark.parametrize("age", ["-1", "NaN", "true", '"1"', "1e999", "9" * 400])
def test_verdict_without_a_sound_age_serves_nobody(age: str) -> None:
    with running() as world:
        world.agent.raw = b'{"ok":true,"good":true,"age_s":%s,"quote":"AAAA","quote_sha256":"' % age.encode()
        world.agent.raw += b'709e80c88487a2411e1ee4dfb9f22a861492d20c4765150c0c794abd70f8147c","short":{}}\n'
        time.sleep(0.1)
        answer, _, text = world.chat({"x-attestation": "required"})
    assert (answer, code(text)) == (503, "attestation.unavailable")
    assert not world.engine.requests
