"""From an admitted request to the engine's unix socket and back, in bounded memory."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from antechamber.gateway.answers import EVERY_ANSWER, RequestRefused
from antechamber.gateway.clients import Shares, client_of

BODY_S = 60.0  # to receive a body
STALL_S = 120.0  # for a client that does not read
ENGINE_CONNECT_S = 5.0
ENGINE_SILENCE_S = 600.0  # a long completion without streaming says nothing until its end
BUFFERED_BODIES = 32  # of the largest size, over all connections
_REQUEST_HEADERS = ("content-type", "accept")
_ANSWER_HEADERS = ("content-type", "retry-after")
_NO_EXTRAS = ("user-agent", "accept-encoding", "content-type")


class Bodies:
    """Request bodies, read whole before the engine hears of them: one too long or without end costs it nothing.

    All have room for BUFFERED_BODIES of the largest, one client for one part in `share` of that, and for one body.
    """

    def __init__(self, limit: int, share: int) -> None:
        self._limit, self._left = limit, limit * BUFFERED_BODIES
        self._clients = Shares(max(limit, self._left // share))

    @asynccontextmanager
    async def read(self, request: web.BaseRequest) -> AsyncIterator[bytes]:
        """Lend the body. Raises RequestRefused `request.size`, `request.timeout`, `request.body`, `gateway.busy`."""
        if (request.content_length or 0) > self._limit:
            raise self._too_long()
        client, body = client_of(request.remote or ""), bytearray()
        try:
            await self._receive(request, client, body)
            yield bytes(body)
        finally:
            self._left += len(body)
            self._clients.give_back(client, len(body))

    async def _receive(self, request: web.BaseRequest, client: str, body: bytearray) -> None:
        try:
            async with asyncio.timeout(BODY_S):
                await self._fill(request, client, body)
        except TimeoutError as e:
            raise RequestRefused(
                "request.timeout", "the body came too slowly", hint="send it faster", status=408
            ) from e
        except web.RequestPayloadError as e:
            raise RequestRefused(
                "request.body", "the body's framing is broken", hint="send valid HTTP", status=400
            ) from e

    async def _fill(self, request: web.BaseRequest, client: str, body: bytearray) -> None:
        while chunk := await request.content.readany():
            if len(body) + len(chunk) > self._limit:
                raise self._too_long()
            if len(chunk) > self._left or not self._clients.take(client, len(chunk)):
                raise RequestRefused(
                    "gateway.busy",
                    "too many bodies at once",
                    hint="try again",
                    status=503,
                    headers={"retry-after": "1"},
                )
            self._left -= len(chunk)
            body += chunk

    def _too_long(self) -> RequestRefused:
        return RequestRefused("request.size", "the body is too long", hint=f"at most {self._limit} bytes", status=413)


class Engine:
    """The engine behind its unix socket. One connection a request: nothing is left over for the next caller."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    @classmethod
    @asynccontextmanager
    async def at(cls, upstream: str) -> AsyncIterator["Engine"]:
        connector = aiohttp.UnixConnector(upstream, limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=ENGINE_CONNECT_S, sock_read=ENGINE_SILENCE_S)
        jar = aiohttp.DummyCookieJar()
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, cookie_jar=jar, auto_decompress=False
        ) as session:
            yield cls(session)

    async def relay(
        self, request: web.BaseRequest, path: str, body: bytes, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        """Ask the engine and stream its answer. Raises RequestRefused `engine.*` while nothing is sent yet."""
        kept = {name: request.headers[name] for name in _REQUEST_HEADERS if name in request.headers}
        try:
            answer = await self._session.request(
                request.method,
                "http://engine" + path,
                data=body or None,
                headers=kept | {"accept-encoding": "identity"},
                allow_redirects=False,
                skip_auto_headers=_NO_EXTRAS,
            )
        except TimeoutError as e:
            raise RequestRefused("engine.timeout", "the engine is silent", hint="try again later", status=504) from e
        except (aiohttp.ClientError, OSError) as e:
            raise RequestRefused("engine.unreachable", "no answer from the engine", hint="try later", status=502) from e
        async with answer:
            if answer.status < 200 or answer.headers.get("content-encoding", "identity") != "identity":
                raise RequestRefused(
                    "engine.answer", "not an answer to pass on", hint="see the engine's log", status=502
                )
            return await _stream(request, answer, headers)


async def _stream(
    request: web.BaseRequest, upstream: aiohttp.ClientResponse, headers: Mapping[str, str]
) -> web.StreamResponse:
    """Pass on each piece when the client has taken the one before: the engine is read no faster.

    An answer that breaks off ends the connection without the last chunk, so that nobody takes it for whole.
    """
    kept = {name: upstream.headers[name] for name in _ANSWER_HEADERS if name in upstream.headers}
    answer = web.StreamResponse(status=upstream.status, headers={**kept, **EVERY_ANSWER, **headers})
    if upstream.content_length is not None:
        answer.content_length = upstream.content_length
    elif upstream.status not in (204, 304):
        answer.enable_chunked_encoding()
    try:
        await answer.prepare(request)
        async for piece in upstream.content.iter_any():
            async with asyncio.timeout(STALL_S):
                await answer.write(piece)
        await answer.write_eof()
    except (aiohttp.ClientError, TimeoutError) as e:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the answer broke off") from e
    return answer
