"""Servers, networks and files that a Relying Party must not believe."""

import base64
import contextlib
import dataclasses
import datetime as dt
import json
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from unit.client.guest import Guest, booted, url
from unit.gateway.world import certificate, memfd, running

from antechamber.broker.authority import Authority
from antechamber.broker.ear import TokenSigner
from antechamber.client import report, saved
from antechamber.client.fetch import EndpointUnreachable, Origin, get
from antechamber.client.pinned import async_http_client, http_client, openai_http_client, pinned_context
from antechamber.client.verify import Pinned, public_key, verify_url
from antechamber.errors import AgentError, AppraisalRefused, ConfigError, MalformedEvidence
from antechamber.evidence.appraise import AttestationResult, Claim
from antechamber.evidence.bundle import parse_bundle, verify_bundle
from antechamber.evidence.ear import EVIDENCE, PROFILE
from antechamber.evidence.policy import load_policy


def accepted() -> tuple[Pinned, bytes, bytes]:
    """A guest that was verified, and the key and certificate (PEM) that it was verified with."""
    key, leaf = certificate()
    guest = Guest(leaf)
    bundle = parse_bundle(guest.bundle("00" * 32)[0])
    result = verify_bundle(bundle, guest.policy(), nonce=bytes(32), now=guest.time)
    der = ssl.PEM_cert_to_DER_cert(leaf.decode())
    return Pinned(Origin("localhost", 1), der, bundle, result), key, leaf


@contextlib.contextmanager
def serving(
    key: bytes, leaf: bytes, reply: Callable[[ssl.SSLSocket], None], *, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> Iterator[int]:
    """A TLS server that reads one request a connection, then does as it likes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = newest
    fds = [memfd(leaf), memfd(key)]
    context.load_cert_chain(f"/proc/self/fd/{fds[0]}", f"/proc/self/fd/{fds[1]}")
    for fd in fds:
        os.close(fd)
    listener = socket.create_server(("127.0.0.1", 0))

    def work() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), plain, context.wrap_socket(plain, server_side=True) as link:
                link.settimeout(10)
                read_request(link)
                reply(link)

    threading.Thread(target=work, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def read_request(link: ssl.SSLSocket) -> None:
    """Head and body: what is left unread when we close would reset the connection under our answer."""
    seen = b""
    while b"\r\n\r\n" not in seen and (more := link.recv(1 << 16)):
        seen += more
    head, _, body = seen.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    left = int(length[1]) - len(body) if length else 0
    while left > 0 and (more := link.recv(1 << 16)):
        left -= len(more)


def saying(answer: bytes) -> Callable[[ssl.SSLSocket], None]:
    return lambda link: link.sendall(answer)


@pytest.mark.parametrize("text", ["", "{}", "version: 1", "null", "[]"])
def test_empty_policy_refuses(text: str) -> None:
    with running() as world, pytest.raises(ConfigError) as refused:
        verify_url(url(world), load_policy(text))
    assert refused.value.code.startswith("policy.")
    assert not world.agent.nonces


@pytest.mark.parametrize("name", ["mr_td", "rtmr1", "mr_config_id", "xfam"])
def test_policy_that_leaves_a_pin_out_is_refused(name: str) -> None:
    """Nothing stands for any value but the word `unpinned`."""
    document = yaml.safe_load((Path(__file__).parents[2] / "docs/examples/policy.yaml").read_text())
    load_policy(yaml.safe_dump(document))
    del document["tdx"][name]
    with pytest.raises(ConfigError) as refused:
        load_policy(yaml.safe_dump(document))
    assert refused.value.code == "policy.missing"


def test_evidence_of_another_key_is_refused_although_it_verifies() -> None:
    with running() as world:
        guest = Guest(certificate()[1])  # genuine, but its key is not the gateway's: a man in the middle
        world.agent.compose = guest.bundle
        result, pinned = verify_url(url(world), guest.policy())
        assert [c.name for c in result.claims if c.outcome == "failed"] == ["tls-key"]
        with pytest.raises(AppraisalRefused) as refused:
            openai_http_client(url(world), guest.policy())
        assert refused.value.code == "appraisal.tls-key"
        with pytest.raises(AppraisalRefused):
            pinned_context(pinned)
    assert not world.engine.requests


def test_evidence_over_another_nonce_is_refused() -> None:
    with running() as world:
        guest = booted(world)
        recorded = guest.bundle("ab" * 32)
        world.agent.compose = lambda _: recorded
        result, _ = verify_url(url(world), guest.policy())
        with pytest.raises(AppraisalRefused) as refused:
            result.require()
    assert refused.value.code == "appraisal.nonce"


def test_claimed_nonce_that_no_quote_binds_is_refused() -> None:
    with running() as world:
        guest = booted(world)

        def forge(nonce: str) -> tuple[bytes, bytes]:
            text, quote = guest.bundle("ab" * 32)
            return text.replace(b"ab" * 32, nonce.encode()), quote

        world.agent.compose = forge
        with pytest.raises(AppraisalRefused) as refused:
            verify_url(url(world), guest.policy())
    assert refused.value.code == "quote.report-data"


def test_gpu_that_was_swapped_after_the_boot_is_refused() -> None:
    guest = Guest(certificate()[1])
    guest.machine.gpus = (guest.machine.nvidia.device(1),)  # as genuine, but not the one that was measured
    result, _ = saved.verify_saved(guest.bundle("ab" * 32)[0], guest.policy())
    assert [c.code for c in result.claims if c.outcome == "failed"] == ["appraisal.gpu-identity"]


def ear(ca: Authority, status: str, tls: str) -> str:
    """A token of the broker whose CA this is."""
    key, now = ec.generate_private_key(ec.SECP256R1()), int(time.time())
    event = {"details": {"data": {"domain": "antechamber", "operation": "tls", "content": tls}}}
    cpu = {"ear.status": status, "ear.appraisal-policy-id": "demo", EVIDENCE: {"tdx": {"uefi_event_logs": [event]}}}
    claims = {"eat_profile": PROFILE, "iss": "broker", "jti": "1", "iat": now, "exp": now + 300, "tee-pubkey": {}}
    leaf = ca.issue(key.public_key(), "tokens", names=(), usage=(), now=now, days=1)
    return TokenSigner(key, [leaf, ca.certificate]).sign(claims | {"submods": {"cpu0": cpu}})


@pytest.mark.parametrize(
    ("status", "own_key", "held"),
    [("affirming", True, True), ("contraindicated", True, False), ("none", True, False), ("affirming", False, False)],
)
def test_attestation_result_counts_only_if_it_affirms_this_guest(status: str, own_key: bool, held: bool) -> None:
    """A contraindicated token is as well signed as any, and so is another guest's."""
    guest, ca = Guest(certificate()[1]), Authority.create("tokens", now=int(time.time()))
    guest.token = ear(ca, status, guest.contents["tls"] if own_key else "sha384:" + "00" * 48)
    rules = yaml.safe_load(guest.policy_text()) | {"attestation_result": {"ca": ca.pem()[0].decode()}}
    result, _ = saved.verify_saved(guest.bundle("ab" * 32)[0], load_policy(yaml.safe_dump(rules)))
    assert [c.code for c in result.claims if c.outcome == "failed"] == ([] if held else ["appraisal.ear"])


def test_evidence_of_another_answer_is_refused() -> None:
    with running() as world:
        guest = booted(world)
        world.agent.kept["f" * 64] = guest.bundle("ab" * 32)[0]
        with pytest.raises(AppraisalRefused) as refused:
            verify_url(url(world), guest.policy(), quote_sha256="f" * 64)
    assert refused.value.code == "endpoint.evidence"


@pytest.mark.parametrize("digest", ["", "F" * 64, "../../attestation?nonce=" + "ab" * 16, "a" * 63])
def test_digest_that_is_none_asks_nothing(digest: str) -> None:
    with running() as world, pytest.raises(ConfigError) as refused:
        verify_url(url(world), booted(world).policy(), quote_sha256=digest)
    assert refused.value.code == "endpoint.digest"
    assert "stored" not in world.agent.asked


def test_old_signed_time_is_refused_live() -> None:
    with running() as world:
        guest = Guest(world.certificate, age_s=90_000)
        world.agent.compose = guest.bundle
        result, _ = verify_url(url(world), guest.policy())
    assert [c.code for c in result.claims if c.outcome == "failed"] == ["appraisal.collateral-age"]


def test_saved_bundle_that_claims_another_time_is_refused(tmp_path: Path) -> None:
    guest = Guest(certificate()[1])
    value = json.loads(guest.bundle("ab" * 32)[0])
    envelope = json.loads(value["collateral"])
    payload = json.loads(base64.b64decode(envelope["payload"]))
    payload["time"] += 1000
    envelope["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    value["collateral"] = json.dumps(envelope)
    with pytest.raises(AppraisalRefused) as refused:
        saved.verify_saved(json.dumps(value).encode(), guest.policy())
    assert refused.value.code == "collateral.signature"


def test_saved_bundle_with_any_changed_byte_never_holds() -> None:
    guest = Guest(certificate()[1])
    text = guest.bundle("ab" * 32)[0]
    for at in range(7, len(text), len(text) // 25):
        changed = bytearray(text)
        changed[at] ^= 1
        with contextlib.suppress(AgentError):
            result, _ = saved.verify_saved(bytes(changed), guest.policy())
            assert not result.ok, at


@pytest.mark.parametrize(
    "member", ["transcript", "additional_evidence", "collateral", "attestation_result", "tls_spki"]
)
def test_bundle_with_half_a_surrogate_pair_is_refused(member: str) -> None:
    value = json.loads(Guest(certificate()[1]).bundle("ab" * 32)[0])
    value[member] = "\ud800"
    with pytest.raises(MalformedEvidence) as refused:
        parse_bundle(json.dumps(value).encode())
    assert refused.value.code == "bundle.json"


def test_key_that_changes_after_verification_is_refused() -> None:
    with running() as world:
        client = openai_http_client(url(world), booted(world).policy())
        assert client.get(f"{url(world)}/v1/models").status_code == 200
        port = world.port
    with running(port=port) as impostor:
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            client.get(f"{url(impostor)}/v1/models")
        assert not impostor.engine.requests
    client.close()


def test_certificate_of_the_same_name_from_a_known_ca_is_refused() -> None:
    pinned, _, _ = accepted()
    with serving(*certificate(), saying(b"")) as port:
        here = dataclasses.replace(pinned, origin=Origin("localhost", port))
        with http_client(here) as client, pytest.raises(httpx.ConnectError):
            client.get(f"https://localhost:{port}/v1/models")


def test_answer_without_a_quotes_digest_is_refused() -> None:
    pinned, key, leaf = accepted()
    with serving(key, leaf, saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")) as port:
        here = dataclasses.replace(pinned, origin=Origin("localhost", port))
        with http_client(here) as client, pytest.raises(AppraisalRefused) as refused:
            client.get(f"https://localhost:{port}/v1/models")
    assert refused.value.code == "endpoint.unattested"


@pytest.mark.parametrize("quote", [b"", b"x-tdx-quote: AAAA\r\n", b"x-tdx-quote: !\r\n"])
def test_answer_without_the_quote_it_names_is_refused(quote: bytes) -> None:
    pinned, key, leaf = accepted()
    head = b"HTTP/1.1 200 OK\r\nx-tdx-quote-sha256: " + b"ab" * 32 + b"\r\n" + quote
    with serving(key, leaf, saying(head + b"Content-Length: 2\r\n\r\n{}")) as port:
        here = dataclasses.replace(pinned, origin=Origin("localhost", port))
        with http_client(here) as client, pytest.raises(AppraisalRefused) as refused:
            client.get(f"https://localhost:{port}/v1/models")
    assert refused.value.code == "endpoint.unattested"


def test_redirect_takes_no_prompt_elsewhere() -> None:
    pinned, key, leaf = accepted()
    moved = b"HTTP/1.1 307 Moved\r\nx-tdx-quote-sha256: " + b"ab" * 32
    moved += b"\r\nLocation: http://127.0.0.1:1/v1\r\nContent-Length: 0\r\n\r\n"
    with serving(key, leaf, saying(moved)) as port:
        here = dataclasses.replace(pinned, origin=Origin("localhost", port))
        with http_client(here) as client, pytest.raises(AppraisalRefused) as refused:
            client.post(f"https://localhost:{port}/v1", content=b"prompt", follow_redirects=True)
        assert refused.value.code == "endpoint.origin"
        with http_client(here) as client, pytest.raises(AppraisalRefused):
            client.get(f"http://localhost:{port}/v1")
        with pytest.raises(EndpointUnreachable) as unreachable:
            get(here.origin, "/")
    assert unreachable.value.code == "endpoint.status"


def test_proxy_and_key_log_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    monkeypatch.setenv("SSLKEYLOGFILE", str(keys))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with running() as world, openai_http_client(url(world), booted(world).policy()) as client:
        assert client.get(f"{url(world)}/v1/models").status_code == 200
    assert not keys.exists() or not keys.read_text()


def test_certificate_that_could_issue_others_is_not_pinned() -> None:
    pinned, _, _ = accepted()
    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    ca = (
        x509.CertificateBuilder(x509.Name([]), x509.Name([]), key.public_key(), 1, now, now + dt.timedelta(1))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
    with pytest.raises(AppraisalRefused) as refused:
        pinned_context(dataclasses.replace(pinned, certificate=ca))
    assert refused.value.code == "endpoint.certificate"


@pytest.mark.parametrize(
    ("read", "strange"),
    [
        (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x09"),  # version 10
        (b"\x2a\x86\x48\xce\x3d\x03\x01\x07", b"\x2a\x86\x48\xce\x3d\x03\x01\x7f"),  # an unknown curve
        (b"\x2a\x86\x48\xce\x3d\x02\x01", b"\x2a\x86\x48\xce\x3d\x02\x7f"),  # an unknown kind of key
    ],
    ids=["version", "curve", "key"],
)
def test_certificate_that_cannot_be_read_is_refused(read: bytes, strange: bytes) -> None:
    leaf = ssl.PEM_cert_to_DER_cert(certificate()[1].decode()).replace(read, strange)
    assert strange in leaf
    with pytest.raises(MalformedEvidence) as malformed:
        public_key(leaf)
    assert malformed.value.code == "endpoint.certificate"


@pytest.mark.parametrize(
    ("read", "strange"),
    [
        (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x09"),  # version 10
        (b"\x82\x09localhost", b"\xa5\x09localhost"),  # an alternative name of a kind that nobody reads
    ],
    ids=["version", "name"],
)
def test_certificate_that_cannot_be_read_is_not_pinned(read: bytes, strange: bytes) -> None:
    pinned, _, _ = accepted()
    assert read in pinned.certificate
    with pytest.raises(AppraisalRefused) as refused:
        pinned_context(dataclasses.replace(pinned, certificate=pinned.certificate.replace(read, strange)))
    assert refused.value.code == "endpoint.certificate"


def test_evidence_of_a_past_answer_pins_nothing() -> None:
    with running() as world:
        guest = booted(world)
        digest = world.agent.keep(*guest.bundle("ab" * 32))["sha256"]  # asked by anybody, at any time
        result, pinned = verify_url(url(world), guest.policy(), quote_sha256=digest)
    assert result.ok
    for pin in (pinned_context, http_client, async_http_client):
        with pytest.raises(AppraisalRefused) as refused:
            pin(pinned)
        assert refused.value.code == "endpoint.stale"


def test_endless_answer_is_cut() -> None:
    def flood(link: ssl.SSLSocket) -> None:
        link.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            link.sendall(bytes(1 << 20))

    with serving(*certificate(), flood) as port, pytest.raises(MalformedEvidence) as refused:
        get(Origin("localhost", port), "/")
    assert refused.value.code == "endpoint.size"


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n"])
def test_dripping_answer_ends_at_the_deadline(begin: bytes) -> None:
    def drip(link: ssl.SSLSocket) -> None:
        link.sendall(begin)
        for _ in range(300):
            link.sendall(b"a")
            time.sleep(0.05)

    start = time.monotonic()
    with serving(*certificate(), drip) as port, pytest.raises(EndpointUnreachable):
        get(Origin("localhost", port), "/", deadline_s=0.5)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"nonsense", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", b"HTTP/1.1 204 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}",
        b"HTTP/1.1 500 No\r\nContent-Length: 1\r\n\r\n[",
        b"HTTP/1.1 503 No\r\n\r\n" + b'{"error":{"code":"\\u001b[2Jx"}}',
    ],
)  # fmt: skip
def test_unreadable_answer_is_refused_and_not_repeated(answer: bytes) -> None:
    with serving(*certificate(), saying(answer)) as port, pytest.raises(EndpointUnreachable) as refused:
        get(Origin("localhost", port), "/")
    assert refused.value.code in ("endpoint.unreachable", "endpoint.status", "endpoint.truncated")
    assert "\x1b" not in str(refused.value)


def test_old_tls_is_not_spoken() -> None:
    answer = saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    with serving(*certificate(), answer) as port:
        assert get(Origin("localhost", port), "/").body == b"{}"
    with serving(*certificate(), answer, newest=ssl.TLSVersion.TLSv1_2) as port, pytest.raises(EndpointUnreachable):
        get(Origin("localhost", port), "/")


@pytest.mark.parametrize("evil", ["\x1b[2J\x1b[1;1H", "\r✔ tls-key", "\x9b31m", "a\nb", "‮"])
def test_report_obeys_nothing_that_a_guest_wrote(evil: str) -> None:
    claims = tuple(Claim(evil, outcome, evil, evil, "appraisal.x") for outcome in ("held", "failed", "not-appraised"))
    result = AttestationResult(claims, evil, 0)
    shown = report.as_text(result, ascii_only=False)
    assert evil not in shown
    assert shown.count("\n") == 6  # three claims, two lines more for the failed one, simulated, the conclusion
    assert set(report.as_text(result, ascii_only=True)) <= set(map(chr, range(32, 127))) | {"\n"}
