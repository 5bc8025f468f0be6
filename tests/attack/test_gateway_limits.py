"""Floods, and bodies and heads without end: each has a limit, and each test counts what it cost."""

import concurrent.futures
import contextlib
import itertools
import socket
import ssl
import time
from collections.abc import Callable

import pytest
from unit.gateway.world import CHAT, END, World, body, code, running, status

from antechamber.gateway import attestation, door, proxy
from antechamber.gateway.clients import LEAST_CONNECTIONS

FRESH = "/.well-known/antechamber/attestation?nonce="


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rules on a shorter clock."""
    monkeypatch.setattr(attestation, "CACHE_S", 0.05)
    monkeypatch.setattr(door, "LINGER_S", 0.2)


def test_body_over_the_limit_never_reaches_the_engine() -> None:
    chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    with running() as world:
        declared = world.ask("POST", CHAT, b"x" * (1 + (1 << 16)))
        assert (declared[0], code(declared[2])) == (413, "request.size")
        hidden = world.raw(
            b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + END + b"\r\n" + chunk * 3
        )
        early = world.raw(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 65537\r\n" + END + b"\r\n")
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
        answer, _, text = world.ask("POST", CHAT, b"xx", peer="127.0.0.2")
        assert (answer, code(text)) == (503, "gateway.busy")
    assert not world.engine.requests


def _held(world: World, places: contextlib.ExitStack, size: int, peer: str) -> None:
    """A body that stays in memory: all but its last byte has come."""
    link = places.enter_context(world.connect(peer))
    link.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + b"x" * (size - 1))


def test_bodies_of_one_client_leave_the_others_their_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "BUFFERED_BODIES", 8)
    with running() as world:
        with contextlib.ExitStack() as places:
            for _ in range(8):
                _held(world, places, 1 << 16, "127.0.0.2")
            time.sleep(0.5)
            answer, _, text = world.ask("POST", CHAT, b"{}" + b" " * 9, peer="127.0.0.2")
            assert (answer, code(text)) == (503, "gateway.busy")
            others = [world.ask("POST", CHAT, b"{}" + b" " * 9999, peer=f"127.0.0.{i}")[0] for i in (3, 4)]
            assert others == [200, 200]
            _held(world, places, 1 << 16, "127.0.0.3")
        assert world.ask("POST", CHAT, b"{}" + b" " * 9, peer="127.0.0.2")[0] == 200  # it has its room back


def test_one_client_has_room_for_one_body_however_little_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "BUFFERED_BODIES", 1)
    with running() as world:
        assert world.ask("POST", CHAT, b"{}" + b" " * ((1 << 16) - 2))[0] == 200


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


@pytest.mark.parametrize("shakes_hands", [True, False])
def test_connections_of_one_client_leave_the_others_their_places(shakes_hands: bool) -> None:
    with running(max_connections=16) as world:
        with contextlib.ExitStack() as places:
            for _ in range(LEAST_CONNECTIONS):
                places.enter_context(world.connect("127.0.0.2") if shakes_hands else _plain(world))
            for _ in range(32):
                with pytest.raises((ConnectionError, ssl.SSLError)):  # closed, and does not wait either
                    world.connect("127.0.0.2")
            assert [world.ask("GET", "/health", peer=f"127.0.0.{i}")[0] for i in range(3, 8)] == [200] * 5
        assert _in_time(lambda: world.ask("GET", "/health", peer="127.0.0.2")[0]) == 200


def _plain(world: World) -> socket.socket:
    return socket.create_connection(("localhost", world.port), timeout=20, source_address=("127.0.0.2", 0))


def _in_time(ask: Callable[[], int]) -> int:
    """The answer, when the places of those who left are free."""
    for _ in range(50):
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            return ask()
        time.sleep(0.1)
    pytest.fail("no place came free")


@pytest.mark.parametrize(("share", "most"), [(4, 10), (1, 40)])
def test_one_client_has_its_share_of_the_connections(share: int, most: int) -> None:
    with running(max_connections=40, client_share=share) as world, contextlib.ExitStack() as places:
        for _ in range(most):
            places.enter_context(world.connect("127.0.0.2"))
        if share > 1:
            with pytest.raises((ConnectionError, ssl.SSLError)):
                world.connect("127.0.0.2")


def test_failed_handshakes_give_their_places_back() -> None:
    with running(max_connections=2) as world:
        for _ in range(6):
            with socket.create_connection(("localhost", world.port), timeout=5) as plain:
                plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
                plain.recv(100)
        for _ in range(6):
            assert world.ask("GET", "/health")[0] == 200


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
        answers = [world.ask("GET", FRESH + f"{i:032x}", peer=f"127.0.1.{i}") for i in range(8)]
    assert [a[0] for a in answers].count(200) == attestation.SHARE
    assert {code(a[2]) for a in answers if a[0] != 200} == {"attestation.rate"}
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
