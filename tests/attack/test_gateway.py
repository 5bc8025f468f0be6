"""Requests and peers that must not reach the engine. Each test counts what the engine saw."""

import concurrent.futures
import itertools
import socket
import ssl
import subprocess
import time

import pytest
from unit.gateway.world import CHAT, FakeAgent, World, certificate, code, offered, running

from antechamber.errors import HardwareUnavailable, PlatformUnfit
from antechamber.gateway import agent_link, attestation, door, proxy, tls

END = b"Host: x\r\nConnection: close\r\n"
FRESH = "/.well-known/antechamber/attestation?nonce="


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rules on a shorter clock."""
    monkeypatch.setattr(attestation, "CACHE_S", 0.05)
    monkeypatch.setattr(door, "LINGER_S", 0.2)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def body(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


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


def test_body_over_the_limit_never_reaches_the_engine() -> None:
    chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    with running() as world:
        declared = world.ask("POST", CHAT, b"x" * (1 + (1 << 16)))
        hidden = world.raw(
            b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + END + b"\r\n" + chunk * 3
        )
        early = world.raw(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 65537\r\n" + END + b"\r\n")
    assert (declared[0], code(declared[2])) == (413, "request.size")
    assert declared[1]["x-tdx-quote-sha256"] == world.agent.digest
    assert (status(hidden), code(body(hidden))) == (413, "request.size")
    assert (status(early), code(body(early))) == (413, "request.size")  # without one byte of the body
    assert not world.engine.requests


def test_body_that_never_ends_never_reaches_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "BODY_S", 0.3)
    with running() as world:
        answer = world.raw(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 9\r\n" + END + b"\r\n{")
    assert (status(answer), code(body(answer))) == (408, "request.timeout")
    assert not world.engine.requests


def test_bodies_together_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "BUFFERED_BODIES", 1)
    with running() as world, world.connect() as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 65536\r\n\r\n" + b"x" * 65535)
        time.sleep(0.3)
        answer, _, text = world.ask("POST", CHAT, b"xx")
        assert (answer, code(text)) == (503, "gateway.busy")
    assert not world.engine.requests


def test_broken_chunk_never_reaches_the_engine() -> None:
    with running() as world:
        head = b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + END
        answer = world.raw(head + b"\r\n1\r\n{\r\nZZ\r\n")
    assert status(answer) == 400
    assert not world.engine.requests


@pytest.mark.parametrize("head", [b"X: " + b"a" * 9000, b"\r\n".join(b"X%d: a" % i for i in range(200))])
def test_head_over_the_limit_is_refused(head: bytes) -> None:
    with running() as world:
        assert status(world.raw(b"GET /v1/models HTTP/1.1\r\n" + END + head + b"\r\n\r\n")) == 400
        assert status(world.raw(b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + END + b"\r\n")) == 400
    assert not world.engine.requests


def test_slow_head_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "IDLE_S", 0.5)
    with running() as world, world.connect() as link:
        start = time.monotonic()
        link.sendall(b"GET /v1/models HTTP/1.1\r\n")
        for i in range(100):
            time.sleep(0.1)
            try:
                link.sendall(b"X%d: a\r\n" % i)
            except (OSError, ssl.SSLError):
                break
        assert time.monotonic() - start < 8
    assert not world.engine.requests


def test_connections_over_the_limit_wait() -> None:
    with running(max_connections=2) as world:
        with world.connect(), world.connect():
            third = socket.create_connection(("localhost", world.port), timeout=0.5)
            with pytest.raises((TimeoutError, ssl.SSLError)):
                world.context().wrap_socket(third, server_hostname="localhost")
            third.close()
        assert world.ask("GET", "/health")[0] == 200


def test_failed_handshakes_give_their_places_back() -> None:
    with running(max_connections=2) as world:
        for _ in range(6):
            with socket.create_connection(("localhost", world.port), timeout=5) as plain:
                plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
                plain.recv(100)
        for _ in range(6):
            assert world.ask("GET", "/health")[0] == 200


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
        answer = demand_without_body(world)
        assert (status(answer), code(body(answer))) == (503, "attestation.failed")
        refused = world.chat()
        assert (refused[0], code(refused[2])) == (503, "attestation.failed")
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


def test_nonce_flood_is_limited() -> None:
    with running(nonces_per_minute=3) as world:
        answers = [world.ask("GET", FRESH + f"{i:032x}") for i in range(6)]
    assert [a[0] for a in answers] == [200, 200, 200, 429, 429, 429]
    assert code(answers[3][2]) == "attestation.rate"
    assert 1 <= int(answers[3][1]["retry-after"]) <= 20
    assert len(world.agent.nonces) == 3


def test_nonce_flood_of_one_client_leaves_the_others_their_quotes() -> None:
    with running(nonces_per_minute=2) as world:
        flood = [world.ask("GET", FRESH + f"{i:032x}", peer="127.0.0.2")[0] for i in range(12)]
        other = world.ask("GET", FRESH + "ab" * 32, peer="127.0.0.3")[0]
    assert (flood.count(200), other) == (2, 200)


def test_nonce_flood_of_many_clients_is_limited() -> None:
    with running(nonces_per_minute=1) as world:
        answers = [world.ask("GET", FRESH + f"{i:032x}", peer=f"127.0.1.{i}")[0] for i in range(8)]
    assert answers.count(200) == attestation.SHARE
    assert len(world.agent.nonces) == attestation.SHARE


def test_equal_nonces_cost_one_quote() -> None:
    with running(nonces_per_minute=1) as world:
        world.agent.bundle_delay_s = 1
        with concurrent.futures.ThreadPoolExecutor(5) as pool:
            answers = list(pool.map(lambda c: world.ask("GET", FRESH + c * 32)[0], itertools.repeat("ab", 5)))
    assert answers == [200] * 5
    assert world.agent.nonces == ["ab" * 32]


def test_caller_who_leaves_does_not_take_the_quote_from_the_others() -> None:
    with running(nonces_per_minute=1) as world:
        world.agent.bundle_delay_s = 1
        with world.connect() as first:
            first.sendall(b"GET " + FRESH.encode() + b"ab" * 32 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            time.sleep(0.3)
        assert world.ask("GET", FRESH + "ab" * 32)[0] == 200
    assert len(world.agent.nonces) == 1


def test_tls_1_2_is_refused() -> None:
    with running() as world:
        context = world.context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with (
            socket.create_connection(("localhost", world.port)) as plain,
            pytest.raises((ssl.SSLError, ConnectionError)),
        ):
            context.wrap_socket(plain, server_hostname="localhost")
        assert world.ask("GET", "/health")[0] == 200  # over TLS 1.3


def test_second_connection_does_not_resume_the_first() -> None:
    with running() as world:
        context, seen = world.context(), []
        session = None
        for _ in range(2):
            with context.wrap_socket(
                socket.create_connection(("localhost", world.port)), server_hostname="localhost", session=session
            ) as link:
                link.sendall(b"GET /health HTTP/1.1\r\n" + END + b"\r\n")
                while link.recv(1 << 16):
                    pass
                seen.append((link.version(), link.session_reused, link.session is not None and link.session.has_ticket))
                session = link.session
    assert seen == [("TLSv1.3", False, False)] * 2


@pytest.mark.openssl
def test_openssl_gets_no_session_to_resume_and_no_early_data(tmp_path: object) -> None:
    kept = f"{tmp_path}/session"
    with running() as world:
        asked = ["openssl", "s_client", "-connect", f"localhost:{world.port}", "-tls1_3", "-ign_eof"]
        request = b"GET /health HTTP/1.1\r\n" + END + b"\r\n"
        shown = subprocess.run([*asked, "-sess_out", kept], input=request, capture_output=True, timeout=20).stdout
    assert b"200 OK" in shown
    assert b"NewSessionTicket" not in shown
    assert b"Post-Handshake New Session Ticket" not in shown
    assert b"Max Early Data: 0" in shown or b"Early data was not sent" in shown


@pytest.mark.parametrize(
    "spoil",
    [
        {"fds": 0},
        {"fds": 2},
        {"seals": 0},
        {"raw": b""},
        {"raw": b"nonsense\n"},
        {"raw": b'{"ok":false,"code":"boot.unfinished"}\n'},
        {"raw": b'{"ok":true}\n'},
        {"silent": True},
    ],
)
def test_gateway_refuses_what_is_no_handover(spoil: dict[str, object], tmp_path: object) -> None:
    key, leaf = certificate()
    agent = FakeAgent(f"{tmp_path}/agent.sock", offered(1, leaf, "/engine.sock"), key)
    for name, value in spoil.items():
        setattr(agent, name, value)
    with pytest.raises(PlatformUnfit) as refused:
        agent_link.handover(agent.path)
    agent.close()
    assert refused.value.code == "gateway.handover"
    assert refused.value.exit_status == 69


def test_gateway_refuses_without_an_agent(tmp_path: object) -> None:
    with pytest.raises(HardwareUnavailable) as refused:
        agent_link.handover(f"{tmp_path}/agent.sock")
    assert refused.value.code == "handover.none"


def test_gateway_refuses_a_key_that_is_not_the_certificates(tmp_path: object) -> None:
    (key, _), (_, leaf) = certificate(), certificate()
    agent = FakeAgent(f"{tmp_path}/agent.sock", offered(1, leaf, "/engine.sock"), key)
    with pytest.raises(PlatformUnfit) as refused:
        tls.server_context(agent_link.handover(agent.path))
    agent.close()
    assert refused.value.code == "gateway.key"
    assert "PRIVATE" not in str(refused.value)


def test_port_closes_when_the_agent_ends() -> None:
    """However it ends: a guest that nobody watches serves nobody."""
    with pytest.raises(HardwareUnavailable) as ended:
        _end_of_the_agent()
    assert ended.value.code == "agent.gone"


def _end_of_the_agent() -> None:
    with running() as world:
        world.agent.ended.set()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                world.connect().close()
            except OSError:
                return
            time.sleep(0.05)
        pytest.fail("the port is still open")
