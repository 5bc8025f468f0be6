"""Requests that must not reach the engine. Each test counts what the engine saw."""

import pytest
from unit.gateway.world import CHAT, END, body, code, running, status

from antechamber.gateway import attestation, door


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rules on a shorter clock."""
    monkeypatch.setattr(attestation, "CACHE_S", 0.05)
    monkeypatch.setattr(door, "LINGER_S", 0.2)


@pytest.mark.parametrize(
    "target",
    [
        "/v1/models/", "//v1/models", "/v1//models", "/v1/../v1/models", "/./v1/models", "/v1/%6dodels", "/v1%2fmodels",
        "/%2e%2e/v1/models", "/v1/models%00", "/v1/models;x", "/V1/models", "/v1/models#x", "/v1\\models",
        "http://engine/v1/models", "https://localhost/v1/models", "http:///v1/models", "v1/models", "*", "/metrics",
        "/tokenize", "/invocations", "/v1/load_lora_adapter", "/v1/responses", "/health/", "/v1/models\t", "/",
        "/.well-known/antechamber/evidence/../../../v1/models", "/.well-known/antechamber/evidence/" + "A" * 64,
    ],
)  # fmt: skip
def test_target_that_only_resembles_a_listed_one_reaches_nothing(target: str) -> None:
    with running() as world:
        answer = world.raw(b"GET " + target.encode() + b" HTTP/1.1\r\n" + END + b"\r\n")
    assert status(answer) in (400, 404)
    if status(answer) == 404:
        assert code(body(answer)) == "request.path"
    assert not world.engine.requests


@pytest.mark.parametrize(
    ("method", "path", "wanted"),
    [
        ("GET", CHAT, "request.method"),
        ("DELETE", "/v1/models", "request.method"),
        ("HEAD", "/v1/models", ""),
        ("OPTIONS", CHAT, "request.method"),
        ("POST", "/attestation", "request.method"),
        ("GET", "/v1/models?a=b", "request.query"),
        ("GET", "/v1/models?", "request.query"),
        ("GET", "/attestation?x", "request.query"),
    ],
)
def test_method_or_query_that_is_not_listed_is_refused(method: str, path: str, wanted: str) -> None:
    with running() as world:
        answer, headers, text = world.ask(method, path)
    assert (answer, code(text) if text else "") == (400 if "?" in path else 405, wanted)
    assert path == "/attestation" or headers.get("x-tdx-quote-sha256", world.agent.digest) == world.agent.digest
    assert not world.engine.requests


def test_connect_is_refused() -> None:
    with running() as world:
        assert status(world.raw(b"CONNECT localhost:80 HTTP/1.1\r\n" + END + b"\r\n")) in (400, 404)
    assert not world.engine.requests


SMUGGLED = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"0\r\n\r\n" + SMUGGLED


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\nContent-Length: 5\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked, gzip\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 0x5\r\n",
        b"Content-Length: -1\r\n",
        b"X: a\r\n folded: b\r\nContent-Length: 5\r\n",
        b"X: a\r\n\tTransfer-Encoding: chunked\r\n",
        b"X: a\nTransfer-Encoding: chunked\r\n",
        b"X: a\rTransfer-Encoding: chunked\r\n",
        b"X\x00: a\r\nContent-Length: 5\r\n",
        b"Host: other\r\nContent-Length: 5\r\n",
        b": a\r\nContent-Length: 5\r\n",
    ],
)
def test_ambiguous_framing_is_refused_and_the_connection_ends(head: bytes) -> None:
    with running() as world:
        answer = world.raw(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n" + CHUNKED)
    assert answer.count(b"HTTP/1.") == 1
    assert (status(answer), code(body(answer))) == (400, "request.malformed")
    assert not world.engine.requests


def test_whatever_the_framing_the_engine_gets_one_plain_body() -> None:
    chunks = b"1\r\n{\r\n1;ext=1\r\n}\r\n0\r\nX-Attestation: required\r\n\r\n"
    with running() as world:
        answer = world.raw(b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + END + b"\r\n" + chunks)
    assert status(answer) == 200
    ((_, _, headers, sent),) = world.engine.requests
    assert (sent, headers["Content-Length"]) == (b"{}", "2")
    assert "Transfer-Encoding" not in headers


def test_pipelined_request_is_judged_like_the_first() -> None:
    with running() as world:
        first = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
        answer = world.raw(first + b"GET /metrics HTTP/1.1\r\n" + END + b"\r\n")
    assert answer.count(b"HTTP/1.1 200 ") == answer.count(b"HTTP/1.1 404 ") == 1
    assert len(world.engine.requests) == 1


@pytest.mark.parametrize(
    ("extra", "wanted"),
    [
        (b"Upgrade: websocket\r\nConnection: Upgrade\r\n", "request.upgrade"),
        (b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n", "request.upgrade"),
        (b"Content-Encoding: gzip\r\n", "request.encoding"),
        (b"Content-Length: 2\r\n", "request.body"),
        (b"Expect: 200-ok\r\n", "request.expect"),
    ],
)
def test_another_protocol_or_coding_is_refused(extra: bytes, wanted: str) -> None:
    with running() as world:
        answer = world.raw(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + extra + b"\r\n")
    assert code(body(answer)) == wanted
    assert not world.engine.requests


def test_old_http_is_refused() -> None:
    with running() as world:
        assert code(body(world.raw(b"GET /v1/models HTTP/1.0\r\n\r\n"))) == "request.version"
    assert not world.engine.requests
