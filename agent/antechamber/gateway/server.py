"""The gateway's process: the only TCP port of the guest.

An exact request target reaches one handler; every other target reaches none. Targets are compared as they stand on
the request line: nothing is decoded, folded or stripped, absolute-form is no target here, and a query is refused
where none is asked for.
"""

import asyncio
import json
import resource
import signal
import socket
import ssl
from collections.abc import Mapping

from aiohttp import HttpVersion11, web

from antechamber import log
from antechamber.errors import ConfigError, HardwareUnavailable
from antechamber.gateway import agent_link
from antechamber.gateway.agent_link import AgentLink, Terms
from antechamber.gateway.answers import RequestRefused, json_answer, refusal
from antechamber.gateway.attestation import Bundles, Verdicts, admit, demanded
from antechamber.gateway.door import Door, ended, fault
from antechamber.gateway.proxy import Bodies, Engine
from antechamber.gateway.tls import server_context

ENGINE_PATHS: Mapping[str, str] = {
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/v1/embeddings": "POST",
    "/v1/models": "GET",
}
FRESH = "/.well-known/antechamber/attestation"
STORED = "/.well-known/antechamber/evidence/"


def run(agent_socket_path: str) -> int:
    """`antechamber gateway`: serve until SIGTERM. Raises PlatformUnfit `gateway.*`, ConfigError `gateway.listen`."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    given = agent_link.handover(agent_socket_path)
    context = server_context(given)
    with listen(given.terms.listen) as listener:
        asyncio.run(_until_signal(given.terms, AgentLink(agent_socket_path), listener, context))
    return 0


def listen(address: str) -> socket.socket:
    """The port, bound. Raises ConfigError `gateway.listen`."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        listener = socket.create_server(
            (host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024
        )
    except (OSError, ValueError, OverflowError) as e:
        raise ConfigError("gateway.listen", f"{address}: {e}", hint="correct gateway.listen, or free the port") from e
    listener.setblocking(False)
    return listener


async def _until_signal(terms: Terms, link: AgentLink, listener: socket.socket, context: ssl.SSLContext) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve(terms, link, listener, context, stop)


async def serve(
    terms: Terms, link: AgentLink, listener: socket.socket, context: ssl.SSLContext, stop: asyncio.Event
) -> None:
    """Until `stop`; then no new connections, and a little time for the running requests.

    Returns only then. Raises HardwareUnavailable `agent.gone`, or whatever else ended it.
    """
    asyncio.get_running_loop().set_exception_handler(fault)
    async with Engine.at(terms.upstream) as engine:
        gateway = Gateway(terms, link, engine)
        await gateway.verdicts.current()  # so that every answer can name a quote
        door = Door(gateway.answer, terms.max_connections, terms.client_share, gateway.verdicts.known)
        waits = (door.accept(listener, context), link.leash(), stop.wait())
        ends = [asyncio.ensure_future(wait) for wait in waits]
        in_peace = False
        try:
            await link.listening()
            log.event("gateway.listening", address=terms.listen)
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in done:
                end.result()  # what broke is not an end like another
            if not stop.is_set():  # nobody watches this guest: no answer is ended in peace
                raise HardwareUnavailable("agent.gone", "the agent ended, so the port is closed", hint="read its log")
            in_peace = True
        finally:
            await ended(ends)
            listener.close()
            await (door.close() if in_peace else door.abort())
    log.event("gateway.stopped")


class Gateway:
    """One request at a time to the right place."""

    def __init__(self, terms: Terms, link: AgentLink, engine: Engine) -> None:
        self.verdicts = Verdicts(link)
        self._terms, self._engine = terms, engine
        self._bundles = Bundles(link, terms.nonces_per_minute)
        self._bodies = Bodies(terms.max_body_bytes, terms.client_share)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """The one entry for a parsed request."""
        try:
            return await self._route(request)
        except RequestRefused as refused:
            return refusal(refused, self.verdicts.known())

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        path, asked, query = request.raw_path.partition("?")
        if (method := ENGINE_PATHS.get(path)) is not None:
            return await self._to_engine(request, path, method, asked)
        _require_plain(request)
        if path == FRESH:
            _require(request, "GET")
            return _bundle(await self._bundles.fresh(query, request.remote or ""))
        if asked:
            raise RequestRefused("request.query", "no query belongs here", hint="leave it out", status=400)
        if path.startswith(STORED) and _is_digest(digest := path.removeprefix(STORED)):
            _require(request, "GET")
            return _bundle(await self._bundles.stored(digest))
        if path in ("/attestation", "/health"):
            _require(request, "GET")
            if path == "/attestation":
                return await self._short()
            return json_answer(b'{"status":"ok"}', headers=self.verdicts.known())
        raise RequestRefused("request.path", "nothing is served here", hint="see the API's list of paths", status=404)

    async def _short(self) -> web.StreamResponse:
        seen = await self.verdicts.current()
        return json_answer(json.dumps(seen.verdict.short).encode(), headers=seen.headers)

    async def _to_engine(self, request: web.BaseRequest, path: str, method: str, asked: str) -> web.StreamResponse:
        """Everything that can refuse comes before the body is read, and that before the engine hears of it."""
        seen = await self.verdicts.current()
        try:
            _require_plain(request)
            _require(request, method)
            if asked:
                raise RequestRefused("request.query", "no query belongs here", hint="leave it out", status=400)
            demand = demanded(request.headers.getall("x-attestation", []))
            admit(seen, demand, self._terms.verdict_age_s)
            await _continue(request)
            async with self._bodies.read(request) as body:
                seen = await self.verdicts.current()  # again: a body may take a minute
                headers = seen.headers | admit(seen, demand, self._terms.verdict_age_s)
                return await self._engine.relay(request, path, body, headers)
        except RequestRefused as refused:
            return refusal(refused, seen.headers)


def _require(request: web.BaseRequest, method: str) -> None:
    if request.method != method:
        raise RequestRefused(
            "request.method",
            f"{request.method} is not served here",
            hint=f"use {method}",
            status=405,
            headers={"allow": method},
        )
    if method == "GET" and request.can_read_body:
        raise RequestRefused("request.body", "a GET with a body", hint="send none", status=400)


def _require_plain(request: web.BaseRequest) -> None:
    """HTTP/1.1 (an older client cannot tell a whole answer from a broken one), not compressed, not upgraded."""
    if request.version != HttpVersion11:
        raise RequestRefused("request.version", "not HTTP/1.1", hint="use HTTP/1.1", status=505)
    if "upgrade" in request.headers:
        raise RequestRefused("request.upgrade", "no other protocol is served", hint="leave Upgrade out", status=400)
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RequestRefused("request.encoding", "the body is compressed", hint="send it plain", status=415)


def _is_digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def _bundle(found: agent_link.StoredBundle) -> web.Response:
    return json_answer(found.text, headers={"x-tdx-quote-sha256": found.quote_sha256})


async def _continue(request: web.BaseRequest) -> None:
    """RFC 9110, 10.1.1: only now is the body wanted."""
    expected = request.headers.get("expect", "").lower()
    if expected == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun
    elif expected:
        raise RequestRefused("request.expect", "an unknown expectation", hint="leave Expect out", status=417)
