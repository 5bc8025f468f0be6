"""The transport against peers that misbehave on the wire."""

import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from antechamber.broker.authority import Authority
from antechamber.broker.transport import Transport
from antechamber.errors import AgentError, BrokerUnreachable, ConfigError

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    """A CA, and certificates for 127.0.0.1 and for another name."""
    authority = Authority.create("test", now=int(time.time()))
    (tmp_path / "ca.pem").write_bytes(authority.pem()[0])
    for name, names in (("good", ["127.0.0.1"]), ("other", ["kbs.example.org"])):
        certificate, key = authority.serve(names, now=int(time.time()), days=1)
        (tmp_path / f"{name}.pem").write_bytes(certificate + key)
    return tmp_path


@contextmanager
def peer(
    ca: Path, answer: Callable[[socket.socket], None], certificate: str = "good", version: int | None = None
) -> Iterator[str]:
    """A TLS peer that reads one request's bytes and then does as `answer` says, once per connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca / f"{certificate}.pem")
    if version is not None:
        context.minimum_version = context.maximum_version = ssl.TLSVersion(version)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with suppress(OSError), context.wrap_socket(connection, server_side=True) as tls:
                answer(tls)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def say(*parts: bytes, pause_s: float = 0.0) -> Callable[[socket.socket], None]:
    def answer(tls: socket.socket) -> None:
        asked = b""
        while not _whole(asked):  # to close on unread bytes is a reset
            asked += tls.recv(65536)
        for part in parts:
            tls.sendall(part)
            time.sleep(pause_s)

    return answer


def _whole(request: bytes) -> bool:
    head, end, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    return bool(end) and len(body) >= int(length[1] if length else 0)


def code_of(url: str, ca: Path, timeout_s: float = 2, limit: int = 1000) -> str:
    with pytest.raises(AgentError) as refused:
        Transport(url, str(ca / "ca.pem"), timeout_s).exchange("GET", "/", limit=limit)
    assert isinstance(refused.value, BrokerUnreachable | ConfigError)
    return refused.value.code


def test_transport_keeps_one_connection_for_all_exchanges(ca: Path) -> None:
    connections = []

    def answer(tls: socket.socket) -> None:
        connections.append(1)
        while tls.recv(65536):
            tls.sendall(OK)

    with peer(ca, answer) as url:
        transport = Transport(url, str(ca / "ca.pem"), 2)
        assert [transport.exchange("GET", "/").body for _ in range(3)] == [b"ok"] * 3
        assert len(connections) == 1
        transport.close()


def test_transport_returns_status_headers_and_cookies(ca: Path) -> None:
    raw = b"HTTP/1.1 401 No\r\nContent-Length: 1\r\nX-A: b\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\n-"
    with peer(ca, say(raw)) as url:
        answer = Transport(url, str(ca / "ca.pem"), 2).exchange("POST", "/x", body=b"{}")
    assert (answer.status, answer.headers["x-a"], answer.cookies, answer.body) == (401, "b", ("a=1", "b=2"), b"-")


def test_transport_follows_no_redirect(ca: Path) -> None:
    raw = b"HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    with peer(ca, say(raw)) as url:
        assert Transport(url, str(ca / "ca.pem"), 2).exchange("GET", "/").status == 302


def test_transport_refuses_a_name_that_is_not_in_the_certificate(ca: Path) -> None:
    with peer(ca, say(OK), certificate="other") as url:
        assert code_of(url, ca) == "broker.tls"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1")
def test_transport_refuses_tls_1_1(ca: Path) -> None:
    with peer(ca, say(OK), version=ssl.TLSVersion.TLSv1_1) as url:
        assert code_of(url, ca) in ("broker.tls", "broker.unreachable")


def test_transport_ignores_proxies_and_ca_bundles_of_the_environment(ca: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere")
    with peer(ca, say(OK)) as url:
        assert Transport(url, str(ca / "ca.pem"), 2).exchange("GET", "/").body == b"ok"


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n" + b"x" * 1001,
    ],
)
def test_transport_refuses_an_answer_over_its_limit(ca: Path, raw: bytes) -> None:
    with peer(ca, say(raw)) as url:
        assert code_of(url, ca) == "broker.size"


@pytest.mark.parametrize(
    "raw",
    [b"HTTP/1.1 200 OK\r\n\r\nok", b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",
     b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok",
     b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n"],
    ids=["without an end", "not HTTP", "cut short", "compressed", "long header"],
)  # fmt: skip
def test_transport_refuses_what_is_not_the_protocol(ca: Path, raw: bytes) -> None:
    with peer(ca, say(raw)) as url:
        assert code_of(url, ca) in ("broker.protocol", "broker.unreachable")


def test_transport_refuses_a_broker_that_is_not_there(ca: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert code_of(f"https://127.0.0.1:{port}", ca) == "broker.unreachable"


def test_transport_refuses_a_silent_broker_in_time(ca: Path) -> None:
    with peer(ca, say(pause_s=5)) as url:
        start = time.monotonic()
        assert code_of(url, ca, timeout_s=0.3) == "broker.unreachable"
        assert time.monotonic() - start < 4.5


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n"])
def test_transport_ends_a_dripping_answer_at_its_deadline(ca: Path, head: bytes) -> None:
    drip = [b"a: b\r\n"] * 60 if not head.endswith(b"\r\n\r\n") else [b"x"] * 60
    with peer(ca, say(head, *drip, pause_s=0.1)) as url:
        start = time.monotonic()
        assert code_of(url, ca, timeout_s=0.5) == "broker.unreachable"
        assert time.monotonic() - start < 4.5


def test_transport_refuses_a_ca_file_that_is_not_one(ca: Path) -> None:
    (ca / "ca.pem").write_text("no")
    assert code_of("https://127.0.0.1:1", ca) == "config.file"
    (ca / "ca.pem").unlink()
    assert code_of("https://127.0.0.1:1", ca) == "config.file"


@pytest.mark.parametrize("url", ["https://[", "https://", "https://host:port", "https://host:70000", "https://host:0"])
def test_transport_refuses_a_url_that_does_not_parse(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Transport(url, "ca.pem", 1)
    assert refused.value.code == "config.value"
