"""Bytes from a guest over one TLS connection that is trusted for nothing: what is trusted is the Evidence inside.

No certificate is verified here, because the Evidence names the key of this very connection (`verify`).
"""

import contextlib
import http.client
import json
import os
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from antechamber.errors import AgentError, ConfigError, MalformedEvidence
from antechamber.evidence.bundle import MAX_BUNDLE

CONNECT_S = 10.0
DEADLINE_S = 90.0  # for a whole answer: a quote may take seconds, and others may be first
FRESH = "/.well-known/antechamber/attestation?nonce="
STORED = "/.well-known/antechamber/evidence/"
_HINT = "see whether the URL is the gateway's and the guest serves"


class EndpointUnreachable(AgentError):
    """No answer from the guest, or none that can be read."""

    exit_status = 75


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a guest serves."""

    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> Self:
        """From `https://host[:port]`. Raises ConfigError `endpoint.url`."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as e:
            raise _no_origin(url) from e
        rest = (parts.query, parts.fragment, parts.username, parts.password)
        if parts.scheme != "https" or not host or port == 0 or parts.path not in ("", "/") or any(rest):
            raise _no_origin(url)
        if not re.fullmatch(r"[A-Za-z0-9.:_-]+", host) or not re.fullmatch(r"[!-~]+", url):  # urlsplit drops newlines
            raise _no_origin(url)
        return cls(host, port or 443)


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came, and the certificate of the connection it came over, in DER."""

    body: bytes
    certificate: bytes


def fresh_bundle(origin: Origin, nonce: bytes) -> Fetched:
    """A bundle over our nonce. Raises EndpointUnreachable `endpoint.*`, MalformedEvidence `endpoint.size`."""
    return get(origin, FRESH + nonce.hex())


def stored_bundle(origin: Origin, quote_sha256: str) -> Fetched:
    """The bundle of a past answer, by its `x-tdx-quote-sha256`.

    Raises as `fresh_bundle` does, and ConfigError `endpoint.digest`.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", quote_sha256):
        raise ConfigError("endpoint.digest", "not a digest", hint="give x-tdx-quote-sha256: 64 lower-case hex digits")
    return get(origin, STORED + quote_sha256)


def get(origin: Origin, target: str, *, deadline_s: float = DEADLINE_S) -> Fetched:
    """One bounded GET. Neither proxies of the environment nor redirects are followed."""
    link = http.client.HTTPSConnection(origin.host, origin.port, timeout=CONNECT_S, context=_context())
    try:
        link.connect()
        with _deadline(link.sock, deadline_s):
            link.sock.settimeout(deadline_s)
            return _exchange(link, target)
    except (OSError, http.client.HTTPException, ValueError) as e:
        kind = getattr(e, "reason", None) or getattr(e, "strerror", None) or type(e).__name__
        raise EndpointUnreachable("endpoint.unreachable", f"{origin.host}:{origin.port}: {kind}", hint=_HINT) from e
    finally:
        link.close()


def _exchange(link: http.client.HTTPSConnection, target: str) -> Fetched:
    certificate = link.sock.getpeercert(binary_form=True)
    link.request("GET", target, headers={"accept": "application/json"})
    answer = link.getresponse()
    body = answer.read(MAX_BUNDLE + 1)
    if len(body) > MAX_BUNDLE:
        raise MalformedEvidence("endpoint.size", f"more than {MAX_BUNDLE} bytes", hint=_HINT)
    if answer.status != 200:
        raise EndpointUnreachable("endpoint.status", f"HTTP {answer.status}, {_code(body)}", hint=_HINT)
    if answer.length or certificate is None:
        raise EndpointUnreachable("endpoint.truncated", f"{answer.length} bytes are missing", hint=_HINT)
    return Fetched(body, certificate)


def _code(body: bytes) -> str:
    """The code in an error of the gateway's; what the peer says otherwise is not repeated."""
    try:
        code = json.loads(body)["error"]["code"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "no code"
    return code if isinstance(code, str) and re.fullmatch(r"[a-z0-9.-]{1,64}", code) else "no code"


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the Evidence vouches for the key, no CA does
    return context


@contextlib.contextmanager
def _deadline(link: socket.socket, seconds: float) -> Iterator[None]:
    """End the connection when time is up, however slowly its bytes drip: socket timeouts start anew with each.

    Raises TimeoutError, also where the reader took the end for the answer's.
    """
    twin = socket.socket(fileno=os.dup(link.fileno()))
    late = threading.Event()
    timer = threading.Timer(seconds, _end, [twin, late])
    timer.daemon = True
    timer.start()
    try:
        yield
        if late.is_set():
            raise TimeoutError("the deadline has passed")
    finally:
        timer.cancel()
        timer.join()
        twin.close()


def _end(link: socket.socket, late: threading.Event) -> None:
    late.set()
    with contextlib.suppress(OSError):  # ended already
        link.shutdown(socket.SHUT_RDWR)


def _no_origin(url: str) -> ConfigError:
    return ConfigError(
        "endpoint.url", f"{url[:200]!r} is no origin", hint="give https://host[:port], and nothing after it"
    )
