"""HTTP clients that speak only to the key that was verified: `OpenAI(http_client=openai_http_client(url, policy))`."""

import base64
import binascii
import hashlib
import ipaddress
import ssl
from typing import TYPE_CHECKING, Any

from cryptography import x509

from antechamber.client.fetch import Origin
from antechamber.client.verify import Pinned, verify_url
from antechamber.errors import AppraisalRefused, ConfigError
from antechamber.evidence.certificates import CERTIFICATE_ERRORS
from antechamber.evidence.policy import Policy

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 600.0  # a long completion without streaming says nothing until its end
_HINT = "verify the guest again, with `antechamber verify`"


def openai_http_client(url: str, policy: Policy, *, require_attestation: bool = True) -> "httpx.Client":
    """Verify the guest, then a client pinned to it. Raises as `verify_url` does, AppraisalRefused included."""
    _, pinned = verify_url(url, policy)
    return http_client(pinned, require_attestation=require_attestation)


def openai_async_http_client(url: str, policy: Policy, *, require_attestation: bool = True) -> "httpx.AsyncClient":
    """The same for AsyncOpenAI; it blocks while it verifies."""
    _, pinned = verify_url(url, policy)
    return async_http_client(pinned, require_attestation=require_attestation)


def http_client(pinned: Pinned, *, require_attestation: bool = True) -> "httpx.Client":
    """A client for a guest that was verified. Raises AppraisalRefused if it was not."""
    guard = _Guard(pinned, require_attestation)
    hooks = {"request": [guard.request], "response": [guard.response]}
    client: httpx.Client = _httpx().Client(event_hooks=hooks, **guard.options())
    return client


def async_http_client(pinned: Pinned, *, require_attestation: bool = True) -> "httpx.AsyncClient":
    """As `http_client`, for asyncio."""
    guard = _Guard(pinned, require_attestation)
    hooks = {"request": [guard.async_request], "response": [guard.async_response]}
    client: httpx.AsyncClient = _httpx().AsyncClient(event_hooks=hooks, **guard.options())
    return client


def pinned_context(pinned: Pinned) -> ssl.SSLContext:
    """TLS 1.3 to exactly the verified certificate: it is the only anchor, and it issues nothing.

    Evidence of a past answer (`verify_url` with `quote_sha256`) is for an audit: anyone could have recorded it.

    Raises AppraisalRefused if the guest was not accepted, `endpoint.stale` if it was not asked with a nonce of ours,
    `endpoint.certificate` if its certificate is a CA's or cannot be read.
    """
    pinned.result.require()
    if not any(c.name == "nonce" and c.outcome == "held" for c in pinned.result.claims):
        raise AppraisalRefused("endpoint.stale", "the evidence is not over a nonce of ours", hint=_HINT)
    try:
        leaf = x509.load_der_x509_certificate(pinned.certificate)
        _require_leaf(leaf)
        named = _names(leaf, pinned.origin)
    except CERTIFICATE_ERRORS as e:
        raise AppraisalRefused("endpoint.certificate", "its certificate cannot be read", hint=_HINT) from e
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # no other anchors, no SSLKEYLOGFILE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=pinned.certificate)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = named  # the key is who it is; the name is one claim more
    return context


def _require_leaf(leaf: x509.Certificate) -> None:
    try:
        issues = leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        issues = False
    if issues:
        raise AppraisalRefused("endpoint.certificate", "a CA's certificate cannot be pinned", hint=_HINT)


def _names(leaf: x509.Certificate, origin: Origin) -> bool:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    try:
        return ipaddress.ip_address(origin.host) in names.get_values_for_type(x509.IPAddress)
    except ValueError:
        return origin.host.lower() in (name.lower() for name in names.get_values_for_type(x509.DNSName))


class _Guard:
    """What each request and each answer of a pinned client must be."""

    def __init__(self, pinned: Pinned, require_attestation: bool) -> None:
        self._origin, self._require, self._context = pinned.origin, require_attestation, pinned_context(pinned)

    def options(self) -> dict[str, Any]:
        headers = {"x-attestation": "required"} if self._require else {}
        return {"verify": self._context, "trust_env": False, "timeout": TIMEOUT_S, "headers": headers}

    def request(self, request: "httpx.Request") -> None:
        """No redirect and no wrong base URL takes a prompt elsewhere. Raises AppraisalRefused `endpoint.origin`."""
        url = request.url
        if (url.scheme, url.host.lower(), url.port or 443) != ("https", self._origin.host.lower(), self._origin.port):
            raise AppraisalRefused("endpoint.origin", "a request to somewhere else", hint=_HINT)

    def response(self, response: "httpx.Response") -> None:
        """Raises AppraisalRefused `endpoint.unattested`: an answer that no quote stands behind."""
        digest = response.headers.get("x-tdx-quote-sha256", "")
        if len(digest) != 64:
            raise AppraisalRefused("endpoint.unattested", "an answer without x-tdx-quote-sha256", hint=_HINT)
        if self._require and response.is_success and _digest(response.headers.get("x-tdx-quote", "")) != digest:
            raise AppraisalRefused("endpoint.unattested", "an answer without the quote it names", hint=_HINT)

    async def async_request(self, request: "httpx.Request") -> None:
        self.request(request)

    async def async_response(self, response: "httpx.Response") -> None:
        self.response(response)


def _digest(quote: str) -> str:
    try:
        return hashlib.sha256(base64.b64decode(quote, validate=True)).hexdigest() if quote else ""
    except (binascii.Error, ValueError):
        return ""


def _httpx() -> Any:
    try:
        import httpx  # noqa: PLC0415  # extra `client`
    except ImportError as e:
        raise ConfigError("install.httpx", "httpx is not installed", hint="pip install 'antechamber[client]'") from e
    return httpx
