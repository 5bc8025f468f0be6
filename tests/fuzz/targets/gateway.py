"""What reaches the gateway and the agent's socket: queries, headers, addresses, the agent's answers, requests to it.

The first byte says which; the rest is its text.
"""

import ipaddress
import json
from collections.abc import Callable

from fuzz.contract import Target
from fuzz.mutation import Mutator

from antechamber.boot.handover import parse_answer, parse_request
from antechamber.broker.sessions import origin
from antechamber.broker.settings import parse_listen
from antechamber.client.fetch import Origin
from antechamber.engine.catalog import Launch
from antechamber.errors import ConfigError
from antechamber.gateway import agent_link
from antechamber.gateway.answers import RequestRefused, refusal
from antechamber.gateway.attestation import demanded, nonce_of
from antechamber.gateway.clients import client_of


def _query(raw: bytes) -> None:
    try:
        nonce = nonce_of(raw.decode("latin-1"))
    except RequestRefused as refused:
        assert 400 <= refusal(refused, {}).status < 600
        raise
    assert 16 <= len(bytes.fromhex(nonce)) <= 64
    assert nonce == nonce.lower()
    assert nonce_of(f"nonce={nonce}") == nonce


def _header(raw: bytes) -> None:
    values = raw.decode("latin-1").split("\0")
    assert demanded(values) is (values == ["required"])


def _peer(raw: bytes) -> None:
    text = raw.decode("latin-1")
    client = client_of(text)
    assert client_of(client.partition("/")[0]) == client, "one client counts as two"
    if client:
        ipaddress.ip_network(client)
    origin(text)


def _json(raw: bytes) -> dict[str, object]:
    value = agent_link.parse(raw)
    assert isinstance(value["ok"], bool)
    return value


def _verdict(raw: bytes) -> None:
    verdict = agent_link._verdict(_json(raw))
    assert 0 <= verdict.age_s <= agent_link.MAX_AGE_S
    assert verdict.quote.isascii() and not set("\r\n") & set(verdict.quote), "a header is split"
    json.dumps(verdict.short).encode()


def _bundle(raw: bytes) -> None:
    assert len(bytes.fromhex(agent_link._bundle(_json(raw)).quote_sha256)) == 32


def _terms(raw: bytes) -> None:
    terms = agent_link._terms(raw)
    assert min(terms.max_body_bytes, terms.max_connections, terms.client_share) >= 1


def _request(raw: bytes) -> None:
    assert isinstance(parse_request(raw), dict)


def _answer(raw: bytes) -> None:
    assert isinstance(parse_answer(raw, "agent.sock"), dict)


def _launch(raw: bytes) -> None:
    launch = Launch.from_json(parse_answer(raw, "agent.sock"))
    assert Launch.from_json(launch.to_json()) == launch


def _address(raw: bytes) -> None:
    text = raw.decode("utf-8", "surrogateescape")
    try:
        _, port = parse_listen(text)
        assert 0 <= port <= 65535
    except ConfigError as refused:
        assert refused.code == "broker.value"
    found = Origin.parse(text)
    assert 0 < found.port <= 65535
    assert found.host.isascii() and not set("\r\n /") & set(found.host), "a request is split"


KINDS: tuple[Callable[[bytes], None], ...] = (
    _query, _header, _peer, _verdict, _bundle, _terms, _request, _answer, _launch, _address,
)  # fmt: skip


def run(data: bytes) -> None:
    if data:
        KINDS[data[0] % len(KINDS)](data[1:])


def seeds() -> list[bytes]:
    digest = "5d5b09f6dcb2d53a5fffc60c4ac0d55fabdf556069d6631545f42aa6e3500f2e"  # of the quote b"x"
    verdict = {"ok": True, "good": True, "age_s": 1.5, "quote": "eA==", "quote_sha256": "", "short": {"tdx_version": 4}}
    verdict["quote_sha256"] = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    terms = {
        "ok": True, "listen": "0.0.0.0:8443", "certificate": "PEM", "model": "m", "upstream": "/run/e.sock",
        "max_body_bytes": 1, "max_connections": 1, "verdict_age_s": 1, "nonces_per_minute": 1, "client_share": 4,
    }  # fmt: skip
    launch = {
        "ok": True, "kind": "builtin", "image": "", "argv": ["a"], "env": {"PATH": "/bin"}, "cwd": "/", "socket": "/s",
        "transport": "unix",
    }  # fmt: skip
    refused = {"ok": False, "code": "handover.spent", "detail": "gateway was handed over", "hint": "once"}
    return [
        b"\0nonce=" + b"ab" * 32,
        b"\1required",
        b"\1required\0required",
        b"\x02127.0.0.1",
        b"\x022001:db8::1%eth0",
        b"\x02::ffff:10.0.0.1",
        b"\3" + json.dumps(verdict).encode(),
        b"\4" + json.dumps({"ok": True, "bundle": "{}", "sha256": digest}).encode(),
        b"\5" + json.dumps(terms).encode(),
        b"\5" + json.dumps(refused).encode(),
        b'\6{"op": "bundle", "nonce": "' + b"ab" * 32 + b'"}\n',
        b"\7" + json.dumps(refused).encode(),
        b"\7" + json.dumps({"ok": True, "stage": "serve"}).encode(),
        b"\x08" + json.dumps(launch).encode(),
        b"\x09https://host.example:8443/",
        b"\x09[::1]:8080",
    ]


def mutate(m: Mutator, data: bytes) -> bytes:
    if not data[1:].startswith(b"{"):
        return data[:1] + m.text(data[1:].decode("latin-1")).encode("latin-1", "replace")
    return data[:1] + json.dumps(m.json(json.loads(data[1:])), ensure_ascii=m.often()).encode("utf-8", "replace")


WORDS = (
    "nonce=", "required", "&nonce=", "%00", "::ffff:", "::1", "%eth0", "ok", "good", "age_s", "quote", "quote_sha256",
    "short", "bundle", "sha256", "listen", "certificate", "model", "upstream", "max_body_bytes", "client_share", "op",
    "engine", "gateway", "leash", "listening", "verdict", "status", "stored", "code", "detail", "hint", "kind", "image",
    "argv", "env", "cwd", "socket", "transport", "unix", "loopback", "https://", "@", "NaN", "1e999", "[::1]", ":0",
)  # fmt: skip
TARGET = Target(name="gateway", run=run, seeds=seeds, mutate=mutate, words=WORDS, max_len=1 << 13)
