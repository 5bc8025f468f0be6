import asyncio
import base64
import contextlib
import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from aiohttp import web
from unit.gateway.world import CHAT, QUOTE, FakeAgent, certificate, code, offered, running, serving

from antechamber.errors import ConfigError, HardwareUnavailable
from antechamber.gateway import attestation, door, server
from antechamber.gateway.agent_link import AgentLink


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rules on a shorter clock."""
    monkeypatch.setattr(attestation, "CACHE_S", 0.05)
    monkeypatch.setattr(door, "LINGER_S", 0.2)


def test_gateway_passes_a_completion_both_ways_when_all_is_well() -> None:
    with running() as world:
        status, headers, body = world.chat(prompt="hi")
    assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, "hello")
    assert headers["content-type"].startswith("application/json")
    assert headers["x-tdx-quote-sha256"] == world.agent.digest
    assert "x-tdx-quote" not in headers
    ((method, path, _, sent),) = world.engine.requests
    assert (method, path, json.loads(sent)["prompt"]) == ("POST", CHAT, "hi")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings"])
def test_gateway_serves_the_other_paths_of_the_list(path: str) -> None:
    with running() as world:
        assert world.ask("POST", path, b"{}")[0] == 200
        assert world.ask("GET", "/v1/models")[0] == 200
    assert [p for _, p, _, _ in world.engine.requests] == [path, "/v1/models"]


def test_gateway_passes_only_listed_headers_in_either_direction() -> None:
    extra = {"authorization": "Bearer s3cret", "cookie": "a=b", "x-forwarded-for": "1.2.3.4", "accept": "text/x"}
    with running() as world:
        _, headers, _ = world.chat(extra)
    ((_, _, seen, _),) = world.engine.requests
    assert {k.lower() for k in seen} == {
        "content-type",
        "accept",
        "host",
        "content-length",
        "accept-encoding",
        "connection",
    }
    assert seen["Host"] == "engine"
    assert "set-cookie" not in headers
    assert headers["server"] == "antechamber"


def test_gateway_streams_events_as_they_come() -> None:
    with running() as world:
        status, headers, body = world.chat(stream=True)
    assert status == 200
    assert headers["content-type"] == "text/event-stream"
    assert body.count(b"data: ") == 6
    assert body.endswith(b"data: [DONE]\n\n")


def test_gateway_adds_the_quote_when_attestation_is_demanded() -> None:
    with running() as world:
        status, headers, _ = world.chat({"X-Attestation": "required"})
    assert status == 200
    assert base64.b64decode(headers["x-tdx-quote"]) == QUOTE
    assert len(headers["x-tdx-quote"]) < 8190


def test_gateway_passes_an_engines_error_with_its_status() -> None:
    async def angry(_: web.BaseRequest, __: bytes) -> web.StreamResponse:
        return web.json_response({"error": {"message": "bad"}}, status=422)

    with running() as world:
        world.engine.answer = angry
        status, headers, body = world.chat()
    assert (status, json.loads(body)) == (422, {"error": {"message": "bad"}})
    assert headers["x-tdx-quote-sha256"] == world.agent.digest


def test_gateway_answers_502_when_the_engine_is_gone() -> None:
    with running(engine_up=False) as world:
        status, headers, body = world.chat()
    assert (status, code(body)) == (502, "engine.unreachable")
    assert headers["x-tdx-quote-sha256"] == world.agent.digest


def test_gateway_breaks_off_when_the_engine_breaks_off() -> None:
    async def dying(request: web.BaseRequest, _: bytes) -> web.StreamResponse:
        answer = web.StreamResponse()
        answer.enable_chunked_encoding()
        await answer.prepare(request)
        await answer.write(b"half")
        assert request.transport is not None
        request.transport.close()
        return answer

    with running() as world:
        world.engine.answer = dying
        answer = world.raw(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert b" 200 " in answer
    assert not answer.endswith(b"0\r\n\r\n")


def test_gateway_stops_reading_the_engine_when_the_client_does_not_read() -> None:
    with running() as world:
        world.engine.answer = world.engine.flood
        with socket.socket() as plain:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            plain.connect(("127.0.0.1", world.port))
            with world.context().wrap_socket(plain, server_hostname="localhost") as link:
                link.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
                assert link.recv(100)
                before = -1
                while before != world.engine.sent:
                    before = world.engine.sent
                    time.sleep(0.5)
                assert before < 16 << 20
        assert world.engine.cancelled.wait(10)


def test_gateway_stops_the_engines_work_when_the_client_leaves() -> None:
    stopped = []

    async def slow(_: web.BaseRequest, __: bytes) -> web.StreamResponse:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            stopped.append(True)
            raise
        return web.Response()

    with running() as world:
        world.engine.answer = slow
        with world.connect() as link:
            link.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
            while not world.engine.requests:
                time.sleep(0.01)
        deadline = time.monotonic() + 5
        while not stopped and time.monotonic() < deadline:
            time.sleep(0.01)
    assert stopped


def test_gateway_waits_with_100_continue_until_the_request_may_pass() -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n"
    with running() as world:
        with world.connect() as link:
            link.sendall(head + b"Connection: close\r\n\r\n")
            assert link.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            link.sendall(b"{}")
            assert b"HTTP/1.1 200 " in link.recv(1 << 16)
        world.agent.good = False
        time.sleep(0.1)
        assert b"100 Continue" not in world.raw(head + b"\r\n")


def test_gateway_serves_its_own_paths() -> None:
    with running() as world:
        assert world.ask("GET", "/health")[::2] == (200, b'{"status":"ok"}')
        status, headers, body = world.ask("GET", "/attestation")
        assert (status, json.loads(body)["measurement_valid"]) == (200, True)
        assert headers["x-tdx-quote-sha256"] == world.agent.digest
        stored = world.ask("GET", f"/.well-known/antechamber/evidence/{world.agent.digest}")
        assert stored[::2] == (200, b'{"stored": true}')
        unknown = world.ask("GET", f"/.well-known/antechamber/evidence/{'0' * 64}")
        assert (unknown[0], code(unknown[2])) == (404, "attestation.unknown")
    assert not world.engine.requests


def test_gateway_gives_a_bundle_over_the_callers_nonce() -> None:
    with running() as world:
        status, headers, body = world.ask("GET", f"/.well-known/antechamber/attestation?nonce={'aB' * 32}")
    assert (status, json.loads(body)) == (200, {"nonce": "ab" * 32})
    assert headers["x-tdx-quote-sha256"] == world.agent.digest
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "query", ["", "?", "?nonce=", "?nonce=" + "a" * 31, "?nonce=" + "ab" * 65, "?nonce=" + "ab" * 16 + "&x=1"]
)
def test_gateway_refuses_a_query_that_is_not_one_nonce(query: str) -> None:
    with running() as world:
        status, _, body = world.ask("GET", "/.well-known/antechamber/attestation" + query)
    assert (status, code(body)) == (400, "attestation.nonce")
    assert not world.agent.nonces


def test_gateway_serves_nobody_when_the_agent_is_gone() -> None:
    with running() as world:
        assert world.chat()[0] == 200
        world.agent.silent = True
        time.sleep(0.1)
        status, headers, body = world.chat()
        assert world.ask("GET", "/health")[0] == 200
    assert (status, code(body)) == (503, "attestation.unavailable")
    assert headers["x-tdx-quote-sha256"] == world.agent.digest
    assert len(world.engine.requests) == 1


def test_gateway_writes_nothing_of_a_request_to_any_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with running() as world:
        world.chat({"authorization": "Bearer sw0rdfish"}, prompt="sw0rdfish")
        world.raw(b"sw0rdfish\r\nsw0rdfish\r\n\r\n")
        world.raw(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nsw0rdfish\r\n\r\n")
        world.ask("GET", "/sw0rdfish")
    assert "sw0rdfish" not in caplog.text


def test_gateway_keeps_a_connection_for_the_next_request() -> None:
    one = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    with running() as world:
        answer = world.raw(one + one[:-2] + b"Connection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 OK") == 2


def test_listen_refuses_a_port_in_use() -> None:
    with server.listen("127.0.0.1:0") as taken, pytest.raises(ConfigError) as refused:
        server.listen(f"127.0.0.1:{taken.getsockname()[1]}")
    assert refused.value.code == "gateway.listen"


class BrokenPort(socket.socket):
    """A port whose accept fails in a way that nobody foresaw."""

    def accept(self) -> tuple[socket.socket, object]:
        raise RuntimeError("the port is broken")


def test_serve_fails_when_accepting_does(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with BrokenPort() as port:
        port.setblocking(False)
        port.bind(("127.0.0.1", 0))
        port.listen()
        with pytest.raises(RuntimeError, match="the port is broken"):
            asyncio.run(_life(port))
    assert "gateway.stopped" not in caplog.text


async def _life(port: socket.socket) -> None:
    with serving(port) as (terms, agent, context):
        await server.serve(terms, AgentLink(agent.path), port, context, asyncio.Event())


async def _rest_of_a_life(port: socket.socket, end: Callable[[FakeAgent, asyncio.Event], None]) -> set[object]:
    """Serve until `end`, with a connection in mid handshake and one in mid body; the tasks that are left then."""
    stop = asyncio.Event()
    with serving(port) as (terms, agent, context):
        life = asyncio.create_task(server.serve(terms, AgentLink(agent.path), port, context, stop))
        while "listening" not in agent.asked:
            await asyncio.sleep(0.01)
        writers = [await _writer(port, b"", tls=False), await _writer(port, _HALF, tls=True)]
        await asyncio.sleep(0.2)
        end(agent, stop)
        with contextlib.suppress(HardwareUnavailable):
            await life
        left: set[object] = asyncio.all_tasks() - {asyncio.current_task()}
        for writer in writers:
            writer.close()
        return left


_HALF = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{"


async def _writer(port: socket.socket, sent: bytes, *, tls: bool) -> asyncio.StreamWriter:
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection(*port.getsockname(), ssl=anyone if tls else None)
    writer.write(sent)
    return writer


@pytest.mark.parametrize("end", [lambda _agent, stop: stop.set(), lambda agent, _stop: agent.ended.set()])
def test_serve_leaves_no_task_when_it_ends(
    end: Callable[[FakeAgent, asyncio.Event], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "DRAIN_S", 0.2)
    with server.listen("127.0.0.1:0") as port:
        assert asyncio.run(_rest_of_a_life(port, end)) == set()


def test_fault_warns_of_an_exception_alone(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.new_event_loop()
    with caplog.at_level(logging.WARNING):
        door.fault(loop, {"message": "a remark"})
        assert not caplog.records
        door.fault(loop, {"message": "a fault", "exception": ValueError("secret")})
    loop.close()
    assert [r.getMessage() for r in caplog.records] == ["gateway.fault error='ValueError'"]


def test_run_serves_until_sigterm(tmp_path: object) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    key, leaf = certificate()
    path = f"{tmp_path}/agent.sock"
    terms = offered(port, leaf, f"{tmp_path}/engine.sock")
    agent = FakeAgent(path, terms, key)
    program = f"import sys; from antechamber.gateway.server import run; sys.exit(run({path!r}))"
    child = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": "agent"})
    try:
        deadline = time.monotonic() + 20
        while "listening" not in agent.asked:
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with socket.create_connection(("127.0.0.1", port)):
            child.send_signal(signal.SIGTERM)
            assert child.wait(15) == 0
    finally:
        child.kill()
        child.wait()
        agent.close()
