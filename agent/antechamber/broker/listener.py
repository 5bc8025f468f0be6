"""Connections in: counted before their handshake, by address and in all, and bounded in time.

A connection too many is closed unanswered: whoever it was has no verdict, and may come again.
"""

import asyncio
import logging
import resource
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Coroutine

from antechamber import log
from antechamber.broker.heads import Heads
from antechamber.broker.sessions import origin

PER_ORIGIN = 64  # connections of one IPv4 address, or of one IPv6 /64
MAX_CONNECTIONS = 4096
HANDSHAKE_S = 10.0
CLOSE_S = 5.0  # for the peer to say goodbye
UNREAD_S = 60.0  # for the peer to read on, while an answer does not fit into the buffers
BACKLOG = 128
RESERVE = 256  # descriptors for the database, files and listeners
_PAUSE_S = 0.5  # out of descriptors: let some close
_SILENCE_S = 60.0  # between two lines on what anyone can cause

Factory = Callable[[], asyncio.Protocol]


def raise_descriptors() -> int:
    """Raise the soft limit as far as we use it and may; how many connections fit below it."""
    wanted = MAX_CONNECTIONS + RESERVE
    soft, hard = (wanted if n == resource.RLIM_INFINITY else n for n in resource.getrlimit(resource.RLIMIT_NOFILE))
    if soft < wanted:
        soft = min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return min(MAX_CONNECTIONS, max(soft - RESERVE, soft // 2))


async def open_sockets(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of `host`. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys((one[0], one[4]) for one in found):
            sockets.append(socket.create_server(address, family=family, backlog=BACKLOG))
            sockets[-1].setblocking(False)
    except OSError:
        for one in sockets:
            one.close()
        raise
    return sockets


class Listener:
    """Accepts for an HTTP server until it is closed. The event loop's thread alone counts."""

    def __init__(self, context: ssl.SSLContext, limit: int, heads: Heads) -> None:
        self._context, self._limit, self._heads = context, limit, heads
        self._held: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._sockets: list[socket.socket] = []
        self._quiet_until: dict[str, float] = {}  # what is said, until when not again

    def start(self, factory: Factory, sockets: list[socket.socket]) -> None:
        self._sockets = sockets
        for one in sockets:
            self._spawn(self._accept(one, factory))

    def close(self) -> None:
        """Accept no more, and drop those whose handshake is not done."""
        for task in self._tasks:
            task.cancel()
        for one in self._sockets:
            one.close()

    async def _accept(self, listening: socket.socket, factory: Factory) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                link, address = await loop.sock_accept(listening)
            except OSError as e:
                if self._due("accept"):
                    log.event("broker.accept", level=logging.WARNING, error=e.strerror or "")
                await asyncio.sleep(_PAUSE_S)
                continue
            peer = origin(address[0])
            if self._held[peer] >= PER_ORIGIN or self._held.total() >= self._limit:
                link.close()
                if self._due("crowded"):
                    held, total = self._held[peer], self._held.total()
                    log.event("broker.crowded", level=logging.WARNING, peer=peer, held=held, total=total)
                continue
            self._held[peer] += 1
            self._spawn(self._shake_hands(link, peer, factory()))

    async def _shake_hands(self, link: socket.socket, peer: str, server: asyncio.Protocol) -> None:
        connection = _Connection(server, self._heads, lambda: self._leave(peer))
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                link,
                ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=CLOSE_S,
            )
        except OSError:  # ssl.SSLError is one
            pass
        finally:
            if not connection.made:
                link.close()
                self._leave(peer)

    def _leave(self, peer: str) -> None:
        self._held[peer] -= 1
        if not self._held[peer]:
            del self._held[peer]

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _due(self, what: str) -> bool:
        """Whether to say it again."""
        now = asyncio.get_running_loop().time()
        due = now >= self._quiet_until.get(what, 0)
        if due:
            self._quiet_until[what] = now + _SILENCE_S
        return due


class _Connection(asyncio.Protocol):
    """The HTTP server's own protocol, its heads and its patience bounded, telling when the connection has left."""

    def __init__(self, inner: asyncio.Protocol, heads: Heads, left: Callable[[], None]) -> None:
        self._inner, self._heads, self._left = inner, heads, left
        self._transport: asyncio.Transport | None = None
        self._unread: asyncio.TimerHandle | None = None
        self.made = False  # from here on, `connection_lost` will come

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made = True
        if isinstance(transport, asyncio.Transport):
            self._transport = transport
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        try:
            self._inner.connection_lost(exc)
        finally:
            self._read_on()
            self._heads.leave(self._transport)
            self._left()

    def data_received(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._heads.take(self._transport, len(data)):
            self._inner.data_received(data)
        else:
            self._transport.abort()

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        if self._transport is not None:  # the HTTP server itself waits for ever
            self._unread = asyncio.get_running_loop().call_later(UNREAD_S, self._transport.abort)
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._read_on()
        self._inner.resume_writing()

    def _read_on(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
