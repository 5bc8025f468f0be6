"""Requests that are no HTTP, or HTTP that the protocol does not have. Found by the mutations of tests/mutations."""

import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import MODEL_KEY, PREFIX, Rig, auth_body, cookie_of, running

from antechamber.broker.messages import Attestation, Challenge, ErrorInformation

SECRET = "eyJhbGciOiJFZERTQSJ9.c2VjcmV0.c2VjcmV0"
RESOURCE = f"{PREFIX}/resource/{MODEL_KEY}"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with running(tmp_path / "broker") as rig:
        yield rig


def exchange(rig: Rig, request: bytes) -> tuple[int, bytes]:
    context = ssl.create_default_context(cafile=str(rig.directory / "broker-ca.pem"))
    port = int(rig.url.rpartition(":")[2])
    raw = socket.create_connection(("127.0.0.1", port), timeout=10)
    with raw, context.wrap_socket(raw, server_hostname="localhost") as link:
        link.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer or len(answer.partition(b"\r\n\r\n")[2]) < _length(answer):
            if not (chunk := link.recv(65536)):
                break
            answer += chunk
    return int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2]


def _length(answer: bytes) -> int:
    lines = answer.lower().partition(b"\r\n\r\n")[0].split(b"\r\n")
    return next((int(v) for n, _, v in (line.partition(b":") for line in lines) if n == b"content-length"), 0)


def attested(rig: Rig) -> str:
    """The cookie of a session that would get the model key."""
    guest = rig.guest()
    _, headers, body = rig.raw("POST", PREFIX + "/auth", auth_body())
    nonce, cookie = Challenge.parse(body).nonce, cookie_of(headers)
    sent = Attestation.of(nonce, guest.tee.public_jwk, guest.evidence(nonce), None).build()
    assert rig.raw("POST", PREFIX + "/attest", sent, Cookie=cookie)[0] == 200
    return cookie


@pytest.mark.parametrize(
    "request_", [
        f"GET {RESOURCE} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {SECRET}\0\r\n\r\n",
        f"GET {RESOURCE} HTTP/1.1\r\nHost: a\r\nBearer {SECRET}\r\n\r\n",
        f"POST {PREFIX}/attest HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n{SECRET}",
        f"POST {PREFIX}/attest HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{SECRET}",
        f"get /{SECRET} HTTP/1.1\r\nHost: a\r\n\r\n",
        f"GET /{SECRET} HTTP/9.9\r\nHost: a\r\n\r\n",
    ],
    ids=["NUL", "no colon", "transfer coding", "chunk", "method", "version"],
)  # fmt: skip
def test_what_is_no_http_is_refused_without_the_client_s_words(
    rig: Rig, request_: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    status, body = exchange(rig, request_.encode())
    said = ErrorInformation.parse(body)
    assert (status, said.variant) == (400, "PluginInternalError")
    printed = capfd.readouterr()
    for text in (said.detail, caplog.text, printed.out, printed.err):
        assert SECRET not in text
    assert "Traceback" not in printed.err


def test_unknown_expectation_is_refused_with_the_error_object(rig: Rig) -> None:
    head = f"POST {PREFIX}/auth HTTP/1.1\r\nHost: a\r\nExpect: {SECRET}\r\nContent-Length: 2\r\n\r\n{{}}"
    status, body = exchange(rig, head.encode())
    assert status == 417
    assert SECRET not in ErrorInformation.parse(body).detail


def test_expectation_of_100_continue_is_met(rig: Rig) -> None:
    body = auth_body()
    head = f"POST {PREFIX}/auth HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
    context = ssl.create_default_context(cafile=str(rig.directory / "broker-ca.pem"))
    raw = socket.create_connection(("127.0.0.1", int(rig.url.rpartition(":")[2])), timeout=10)
    with raw, context.wrap_socket(raw, server_hostname="localhost") as link:
        link.sendall(head.encode())
        assert link.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        link.sendall(body)
        assert link.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")


def test_head_neither_releases_nor_spends(rig: Rig) -> None:
    cookie = attested(rig)
    assert rig.raw("HEAD", RESOURCE, Cookie=cookie)[0] == 404
    assert ("released", "") not in rig.decisions()
    assert rig.raw("GET", RESOURCE, Cookie=cookie)[0] == 200


@pytest.mark.parametrize(
    "path", [
        RESOURCE.replace("default/", "default%2f"), RESOURCE[:-1] + "%6f", RESOURCE + "#x", RESOURCE + "%20",
        f"{PREFIX}/resource/kbs:///{MODEL_KEY}", RESOURCE.replace("/default/", "//default/"),
        RESOURCE.replace("/default/", "/./default/"), RESOURCE.replace("/default/", "/x/../default/"),
    ],
)  # fmt: skip
def test_resource_has_one_spelling(rig: Rig, path: str) -> None:
    cookie = attested(rig)
    status, body = exchange(rig, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie}\r\n\r\n".encode())
    assert status == 401
    assert "kbs.path" in ErrorInformation.parse(body).detail
    assert rig.raw("GET", RESOURCE, Cookie=cookie)[0] == 200


def test_devices_beside_which_another_member_stands_are_refused(rig: Rig) -> None:
    guest = rig.guest()
    _, headers, body = rig.raw("POST", PREFIX + "/auth", auth_body())
    nonce, cookie = Challenge.parse(body).nonce, cookie_of(headers)
    devices = json.loads(guest.evidence(nonce).additional)
    devices["nvidia"]["switches"] = []
    evidence = guest.evidence_over(nonce, json.dumps(devices))
    sent = Attestation.of(nonce, guest.tee.public_jwk, evidence, None).build()
    status, _, answer = rig.raw("POST", PREFIX + "/attest", sent, Cookie=cookie)
    assert status == 401
    assert "evidence.devices" in ErrorInformation.parse(answer).detail
