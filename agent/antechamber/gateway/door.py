"""Connections in: counted before their handshake, bounded in time, and never written about."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from antechamber import log
from antechamber.gateway.answers import RequestRefused, refusal

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

HANDSHAKE_S = 10.0
CLOSE_S = 5.0  # for the peer to take what is left and say goodbye
IDLE_S = 30.0  # between requests, and for the whole head of one
LINGER_S = 5.0  # for a refused client to read why
DRAIN_S = 10.0
_PAUSE_S = 0.1  # out of descriptors: let some close
_MAX_LINE = 2048  # bytes
_MAX_FIELD = 8190  # bytes
_MAX_FIELDS = 64


class Door:
    """Accepts no more connections at once than agreed; the rest wait in the kernel's queue."""

    def __init__(self, answer: Answer, limit: int, headers: Callable[[], dict[str, str]]) -> None:
        self._slots = asyncio.Semaphore(limit)
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
        self._server.left, self._server.headers = self._slots.release, headers
        self._arriving: set[asyncio.Task[None]] = set()

    async def accept(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._slots.acquire()
            try:
                link, _ = await loop.sock_accept(listener)
            except OSError:
                self._slots.release()
                await asyncio.sleep(_PAUSE_S)
                continue
            arriving = loop.create_task(self._shake_hands(link, context))
            self._arriving.add(arriving)
            arriving.add_done_callback(self._arriving.discard)

    async def _shake_hands(self, link: socket.socket, context: ssl.SSLContext) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._server, link, ssl=context, ssl_handshake_timeout=HANDSHAKE_S, ssl_shutdown_timeout=CLOSE_S
            )
        except OSError:  # ssl.SSLError is one; the server has not seen this connection and will not see it leave
            link.close()
            self._slots.release()

    async def close(self) -> None:
        """Idle connections at once, the others within DRAIN_S."""
        for arriving in self._arriving:
            arriving.cancel()
        self._server.pre_shutdown()
        await self._server.shutdown(DRAIN_S)


class _Server(web.Server):
    """aiohttp's server, telling when a connection has left."""

    left: Callable[[], None]
    headers: Callable[[], dict[str, str]]  # of every answer

    def __call__(self) -> RequestHandler:
        connection = _Connection(self, loop=self._loop, **self._kwargs)
        connection.headers = self.headers
        return connection

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self.left()


class _Connection(RequestHandler):
    """aiohttp's connection, which tells neither peer nor log what an unreadable request said."""

    __slots__ = ("headers",)

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
    """The event loop's exception handler."""
    _record(context.get("exception"))


def _record(error: object) -> None:
    """Of an exception, its type alone: its text may quote a request."""
    log.event("gateway.fault", level=logging.WARNING, error=type(error).__name__)
