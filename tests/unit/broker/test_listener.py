"""What the broker accepts, before anyone has said a word."""

import asyncio
import errno
import logging
import resource
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from brokers import Rig, running

from antechamber.broker import listener
from antechamber.broker.heads import Heads

HERE, THERE = "127.0.0.1", "127.0.0.2"  # two strangers


def dial(rig: Rig, source: str) -> socket.socket:
    port = int(rig.url.rpartition(":")[2])
    return socket.create_connection((HERE, port), timeout=5, source_address=(source, 0))


def hung_up(link: socket.socket, within_s: float = 5) -> bool:
    link.settimeout(within_s)
    try:
        return link.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def served(rig: Rig, source: str) -> bool:
    """A whole request, or nothing."""
    context = ssl.create_default_context(cafile=str(rig.directory / "broker-ca.pem"))
    try:
        with dial(rig, source) as link, context.wrap_socket(link, server_hostname="localhost") as tls:
            tls.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return tls.recv(100).startswith(b"HTTP/1.1 200")
    except (ConnectionError, ssl.SSLError):
        return False


def served_soon(rig: Rig, source: str) -> bool:
    until = time.monotonic() + 5
    while time.monotonic() < until:
        if served(rig, source):
            return True
        time.sleep(0.02)
    return False


@contextmanager
def connected(rig: Rig, source: str, count: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [stack.enter_context(dial(rig, source)) for _ in range(count)]


def test_address_has_few_connections_and_takes_none_of_another(rig: Rig) -> None:
    with connected(rig, HERE, listener.PER_ORIGIN) as links:
        with dial(rig, HERE) as more:
            assert hung_up(more)
        assert served(rig, THERE)
        assert not hung_up(links[0], 0.05)
    assert served_soon(rig, HERE)


def test_connections_are_counted_out_however_they_end(rig: Rig) -> None:
    for _ in range(listener.PER_ORIGIN + 2):
        assert served_soon(rig, HERE)
        with dial(rig, HERE) as link:
            link.sendall(b"GET / HTTP/1.1\r\n\r\n")  # no TLS
            hung_up(link)
    with connected(rig, HERE, listener.PER_ORIGIN - 1):
        assert served_soon(rig, HERE)


def test_all_connections_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "MAX_CONNECTIONS", 4)
    with running(tmp_path / "broker") as rig:
        with connected(rig, HERE, 4), dial(rig, THERE) as more:
            assert hung_up(more)
        assert served_soon(rig, THERE)


def test_handshake_that_never_comes_is_hung_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener, "HANDSHAKE_S", 0.2)
    with running(tmp_path / "broker") as rig, connected(rig, HERE, listener.PER_ORIGIN) as links:
        assert hung_up(links[0])
        assert served_soon(rig, HERE)
    assert not [r for r in caplog.records if r.exc_info]


def test_shortage_of_descriptors_is_one_line_and_passes(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """As the kernel does: accept fails at once, again and again, and later does not."""

    async def scene() -> int:
        loop, failures = asyncio.get_running_loop(), [OSError(errno.EMFILE, "Too many open files")] * 5
        accept, served = loop.sock_accept, asyncio.Event()

        async def short(listening: socket.socket) -> object:
            if failures:
                raise failures.pop()
            served.set()
            return await accept(listening)

        loop.sock_accept = short  # type: ignore[method-assign, assignment]
        one = listener.Listener(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), 4, Heads())
        one.start(asyncio.Protocol, await listener.open_sockets(HERE, 0))
        await asyncio.wait_for(served.wait(), 10)
        one.close()
        return len(failures)

    with caplog.at_level(logging.INFO):
        assert asyncio.run(scene()) == 0
    lines = [r for r in caplog.records if "broker.accept" in r.getMessage() or r.exc_info]
    assert len(lines) == 1


@pytest.fixture
def descriptors() -> Iterator[int]:
    """The hard limit; the soft one is put back."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_soft_limit_of_descriptors_is_raised(descriptors: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (600, descriptors))
    limit = listener.raise_descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert (soft > 600 or hard == 600, hard) == (True, descriptors)
    assert 0 < limit < soft


def test_limit_stays_below_what_the_system_grants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    assert listener.raise_descriptors() == 1024 - listener.RESERVE
