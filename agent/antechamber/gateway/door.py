"""Connections in: counted before their handshake, bounded in time, and never written about."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from antechamber import log
from antechamber.gateway.answers import RequestRefused, refusal
from antechamber.gateway.clients import LEAST_CONNECTIONS, Shares, client_of

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

HANDSHAKE_S = 10.0
CLOSE_S = 5.0  # for the peer to take what is left and say goodbye
IDLE_S = 30.0  # between requests, and for the whole head of one
LINGER_S = 5.0  # for a refused client to read why
DRAIN_S = 10.0
_PAUSE_S = 0.1  # out of descriptors: let some close
_ABORT_S = 1.0  # for the tasks of connections that are gone
_MAX_LINE = 2048  # bytes
_MAX_FIELD = 8190  # bytes
_MAX_FIELDS = 64


class Door:
    """Accepts no more connections at once than agreed; the rest wait in the kernel's queue.

    One client has at most one part in `share` of them, and LEAST_CONNECTIONS; what it opens beyond that is closed
    unheard, for if it waited, whoever comes after it would wait too.
    """

    def __init__(self, answer: Answer, limit: int, share: int, headers: Callable[[], dict[str, str]]) -> None:
        self._slots = asyncio.Semaphore(limit)
        self._clients = Shares(max(LEAST_CONNECTIONS, limit // share))
        self._server = _Server(
            answer,
            handler_cancellation=True,  # a client who leaves stops the engine's work
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=IDLE_S,
            lingering_time=LINGER_S,
            max_line_size=_MAX_LINE,
            max_field_size=_MAX_FIELD,
            max_headers=_MAX_FIELDS,
        )
        self._server.left, self._server.headers = self._leave, headers
        self._arriving: set[asyncio.Task[None]] = set()

    async def accept(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._slots.acquire()
            try:
                link, address = await loop.sock_accept(listener)
            except OSError:
                self._slots.release()
                await asyncio.sleep(_PAUSE_S)
                continue
            client = client_of(address[0])
            if not self._clients.take(client):
                link.close()
                self._slots.release()
                await asyncio.sleep(0)  # a client that has many more in the queue does not keep the loop
                continue
            arriving = loop.create_task(self._shake_hands(link, client, context))
            self._arriving.add(arriving)
            arriving.add_done_callback(self._arriving.discard)

    async def _shake_hands(self, link: socket.socket, client: str, context: ssl.SSLContext) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self._server.connection(client),
                link,
                ssl=context,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=CLOSE_S,
            )
        except OSError:  # ssl.SSLError is one; the server has not seen this connection and will not see it leave
            link.close()
            self._leave(client)

    def _leave(self, client: str) -> None:
        self._clients.give_back(client)
        self._slots.release()

    async def close(self) -> None:
        """Idle connections at once, the others within DRAIN_S."""
        await ended(self._arriving)
        self._server.pre_shutdown()
        await self._server.shutdown(DRAIN_S)

    async def abort(self) -> None:
        """Every connection at once, in the middle of whatever it is."""
        await ended(self._arriving)
        for connection in self._server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        await self._server.shutdown(_ABORT_S)  # what is left are tasks that learn of it


async def ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel the tasks and wait until they are over: none is left for the loop's end to find."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _Server(web.Server):
    """aiohttp's server, telling when a connection has left."""

    left: Callable[[str], None]  # told which client
    headers: Callable[[], dict[str, str]]  # of every answer

    def connection(self, client: str) -> RequestHandler:
        connection = _Connection(self, loop=self._loop, **self._kwargs)
        connection.headers, connection.client = self.headers, client
        return connection

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        if isinstance(handler, _Connection):
            self.left(handler.client)


class _Connection(RequestHandler):
    """aiohttp's connection, which tells neither peer nor log what an unreadable request said."""

    __slots__ = ("client", "headers")

    client: str
    headers: Callable[[], dict[str, str]]

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun: it can only break off")
        if isinstance(exc, HttpProcessingError):  # anyone can send garbage: not worth a line
            unread = RequestRefused(
                "request.malformed", "the request cannot be read", hint="correct its framing", status=400
            )
            return refusal(unread, self.headers())
        self.log_exception(exc_info=exc)
        failed = RequestRefused("gateway.fault", "not served", hint="try again", status=status)
        return refusal(failed, self.headers())

    def log_exception(self, *_: object, exc_info: object = None, **__: object) -> None:
        _record(exc_info)


def fault(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The event loop's exception handler. What it reports without an exception broke nothing."""
    error = context.get("exception")
    _record(error, logging.DEBUG if error is None else logging.WARNING)


def _record(error: object, level: int = logging.WARNING) -> None:
    """Of an exception, its type alone: its text may quote a request."""
    log.event("gateway.fault", level=level, error=type(error).__name__)
