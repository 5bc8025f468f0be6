"""A gateway between imitations of the wire on both sides: the agent's socket and the engine's."""

import asyncio
import base64
import contextlib
import datetime as dt
import fcntl
import hashlib
import http.client
import ipaddress
import json
import os
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from antechamber.gateway import agent_link, server, tls

QUOTE = bytes(range(256)) * 19
CHAT = "/v1/chat/completions"


def certificate(names: tuple[str, ...] = ("localhost", "127.0.0.1")) -> tuple[bytes, bytes]:
    """PEM of a fresh key (PKCS#8) and of its own certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "guest")])
    now = dt.datetime.now(dt.UTC)
    alternatives = [x509.IPAddress(ipaddress.ip_address(n)) if n[0].isdigit() else x509.DNSName(n) for n in names]
    leaf = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem, leaf.public_bytes(Encoding.PEM)


def memfd(content: bytes, *, seals: int | None = None) -> int:
    fd = os.memfd_create("key", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, content)
    every = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, every if seals is None else seals)
    return fd


END = b"Host: x\r\nConnection: close\r\n"  # what every raw request ends its head with


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def body(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


class FakeAgent:
    """The agent's socket: a line in, a line out, the end; descriptors on the first byte. Knobs are attributes."""

    def __init__(self, path: str, terms: dict[str, Any], key: bytes) -> None:
        self.path, self.terms, self.key = path, terms, key
        self.good, self.age_s, self.quote = True, 1.0, QUOTE
        self.seals: int | None = None
        self.fds = 1
        self.asked: list[str] = []
        self.nonces: list[str] = []
        self.bundle_delay_s = 0.0
        self.silent = False
        self.raw: bytes | None = None
        self.compose: Callable[[str], tuple[bytes, bytes]] | None = None  # nonce to bundle and its quote
        self.kept: dict[str, bytes] = {}
        self.ended = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        with link, contextlib.suppress(OSError):
            line = link.makefile("rb").readline()
            request = json.loads(line)
            self.asked.append(request["op"])
            if self.silent and request["op"] != "leash":  # silent, not ended
                return
            answer = getattr(self, request["op"])(request)
            raw = self.raw if self.raw is not None else json.dumps(answer).encode() + b"\n"
            fds = [memfd(self.key, seals=self.seals) for _ in range(self.fds)] if request["op"] == "gateway" else []
            if raw:
                socket.send_fds(link, [raw[:1]], fds)
                link.sendall(raw[1:])
            for fd in fds:
                os.close(fd)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.quote).hexdigest()

    def gateway(self, _: Any) -> dict[str, Any]:
        return {"ok": True, **self.terms}

    def verdict(self, _: Any) -> dict[str, Any]:
        return {
            "ok": True,
            "good": self.good,
            "age_s": self.age_s,
            "quote": base64.b64encode(self.quote).decode(),
            "quote_sha256": self.digest,
            "short": {"tdx_version": "1.5", "measurement_valid": self.good},
        }

    def bundle(self, request: Any) -> dict[str, Any]:
        self.nonces.append(request["nonce"])
        time.sleep(self.bundle_delay_s)
        if self.compose is None:
            return {"ok": True, "bundle": json.dumps({"nonce": request["nonce"]}), "sha256": self.digest}
        return self.keep(*self.compose(request["nonce"]))

    def keep(self, text: bytes, quote: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(quote).hexdigest()
        self.kept[digest] = text
        return {"ok": True, "bundle": text.decode(), "sha256": digest}

    def stored(self, request: Any) -> dict[str, Any]:
        if (text := self.kept.get(request["sha256"])) is not None:
            return {"ok": True, "bundle": text.decode(), "sha256": request["sha256"]}
        if request["sha256"] != self.digest:
            return {"ok": False, "code": "bundle.unknown", "detail": "not kept", "hint": ""}
        return {"ok": True, "bundle": '{"stored": true}', "sha256": self.digest}

    def leash(self, _: Any) -> dict[str, Any]:
        self.ended.wait()
        return {"ok": True}

    def listening(self, _: Any) -> dict[str, Any]:
        return {"ok": True}

    def close(self) -> None:
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


@dataclass
class FakeEngine:
    """An OpenAI-shaped engine on a unix socket that remembers what reached it."""

    path: str
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    sent: int = 0  # bytes of the current flood
    cancelled: threading.Event = field(default_factory=threading.Event)
    answer: Callable[[web.BaseRequest, bytes], Any] | None = None

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.content.read()
        self.requests.append((request.method, request.raw_path, dict(request.headers), body))
        if self.answer is not None:
            return await self.answer(request, body)
        if request.raw_path == "/v1/models":
            return web.json_response({"object": "list", "data": [{"id": "tiny", "object": "model"}]})
        if body and json.loads(body).get("stream"):
            return await self.stream(request)
        return web.json_response(
            {"id": "c", "choices": [{"message": {"content": "hello"}}]}, headers={"set-cookie": "a=b"}
        )

    async def stream(self, request: web.BaseRequest) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        for i in range(5):
            await answer.write(b'data: {"n":%d}\n\n' % i)
            await asyncio.sleep(0.01)
        await answer.write(b"data: [DONE]\n\n")
        return answer

    async def flood(self, request: web.BaseRequest, _: bytes) -> web.StreamResponse:
        answer = web.StreamResponse()
        answer.enable_chunked_encoding()
        await answer.prepare(request)
        try:
            while self.sent < 256 << 20:
                await answer.write(bytes(1 << 16))
                self.sent += 1 << 16
        except (asyncio.CancelledError, ConnectionError):
            self.cancelled.set()
            raise
        return answer


@dataclass
class World:
    port: int
    agent: FakeAgent
    engine: FakeEngine
    certificate: bytes  # PEM

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.certificate.decode())

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        peer: str = "",
    ) -> tuple[int, dict[str, str], bytes]:
        link = http.client.HTTPSConnection(
            "localhost", self.port, context=self.context(), timeout=20, source_address=(peer, 0) if peer else None
        )
        try:
            link.putrequest(method, path, skip_accept_encoding=True)
            for name, value in (headers or {}).items():
                link.putheader(name, value)
            if body is not None:
                link.putheader("content-length", str(len(body)))
            link.endheaders(body)
            answer = link.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            link.close()

    def chat(self, headers: dict[str, str] | None = None, **fields: Any) -> tuple[int, dict[str, str], bytes]:
        body = json.dumps({"model": "tiny", "messages": [], **fields}).encode()
        return self.ask("POST", CHAT, body, {"content-type": "application/json", **(headers or {})})

    def connect(self, peer: str = "") -> ssl.SSLSocket:
        plain = socket.create_connection(
            ("localhost", self.port), timeout=20, source_address=(peer, 0) if peer else None
        )
        return self.context().wrap_socket(plain, server_hostname="localhost")

    def raw(self, request: bytes) -> bytes:
        """Bytes out, and whatever comes back until the end."""
        with self.connect() as link:
            link.sendall(request)
            answer = b""
            with contextlib.suppress(TimeoutError, ssl.SSLError, ConnectionError):
                while more := link.recv(1 << 16):
                    answer += more
            return answer


def code(body: bytes) -> str:
    """The code in an error of OpenAI's shape."""
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return str(error["code"])


def offered(port: int, leaf: bytes, upstream: str) -> dict[str, Any]:
    """The terms of a handover."""
    return {
        "listen": f"127.0.0.1:{port}",
        "certificate": leaf.decode(),
        "model": "tiny",
        "upstream": upstream,
        "max_body_bytes": 1 << 16,
        "max_connections": 64,
        "verdict_age_s": 300,
        "nonces_per_minute": 30,
    }


@contextlib.contextmanager
def serving(listener: socket.socket) -> Iterator[tuple[agent_link.Terms, FakeAgent, ssl.SSLContext]]:
    """What `serve` needs, for a test with a loop of its own."""
    with tempfile.TemporaryDirectory() as folder:
        key, leaf = certificate()
        agent = FakeAgent(
            f"{folder}/agent.sock", offered(listener.getsockname()[1], leaf, f"{folder}/engine.sock"), key
        )
        handed = agent_link.handover(agent.path)
        try:
            yield handed.terms, agent, tls.server_context(handed)
        finally:
            agent.close()


@contextlib.contextmanager
def running(*, engine_up: bool = True, port: int = 0, **terms: int) -> Iterator[World]:
    with tempfile.TemporaryDirectory() as folder:
        key, leaf = certificate()
        listener = server.listen(f"127.0.0.1:{port}")
        port = listener.getsockname()[1]
        given = {**offered(port, leaf, f"{folder}/engine.sock"), **terms}
        agent = FakeAgent(f"{folder}/agent.sock", given, key)
        engine = FakeEngine(str(given["upstream"]))
        handed = agent_link.handover(agent.path)
        context = tls.server_context(handed)
        stop = _in_thread(handed.terms, agent, engine if engine_up else None, listener, context)
        try:
            yield World(port, agent, engine, leaf)
        finally:
            stop()
            agent.close()


def _in_thread(
    terms: agent_link.Terms,
    agent: FakeAgent,
    engine: FakeEngine | None,
    listener: socket.socket,
    context: ssl.SSLContext,
) -> Callable[[], None]:
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    failed: list[BaseException] = []

    async def main() -> None:
        runner = None
        if engine is not None:
            runner = web.ServerRunner(web.Server(engine, handler_cancellation=True))
            await runner.setup()
            await web.UnixSite(runner, engine.path).start()
        await server.serve(terms, agent_link.AgentLink(agent.path), listener, context, stop)
        if runner is not None:
            await runner.cleanup()

    def work() -> None:
        try:
            loop.run_until_complete(main())
        except BaseException as e:  # noqa: BLE001  # told to the test's own thread
            failed.append(e)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not {"leash", "listening"} <= set(agent.asked):
        assert thread.is_alive(), failed
        assert time.monotonic() < deadline
        time.sleep(0.01)

    def finish() -> None:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        assert not thread.is_alive()
        loop.close()
        for error in failed:
            raise error

    return finish
