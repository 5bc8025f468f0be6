"""The agent's side of the KBS protocol: one session at a time with one broker."""

import re
from collections.abc import Mapping
from typing import NoReturn

from antechamber.broker.messages import (
    MAX_ATTESTATION,
    MAX_CHALLENGE,
    MAX_RESPONSE,
    PREFIX,
    VERSION,
    Attestation,
    Challenge,
    Cookie,
    ErrorInformation,
    Request,
    parse_path,
    parse_token,
)
from antechamber.broker.transport import Answer, Transport
from antechamber.errors import BrokerDenied, BrokerUnreachable, ConfigError, MalformedEvidence
from antechamber.evidence.composite import CompositeEvidence

PLUGIN = PREFIX + "/external/antechamber"
MAX_COLLATERAL = 8 << 20  # bytes


class Kbs:
    """KeyBroker over HTTPS. Speaks to any KBS of protocol 0.4.0; `collateral`, `certify`, `lease` need ours."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._cookie: Cookie | None = None

    def collateral(self, nonce: bytes) -> bytes:
        """The signed collateral-and-time envelope. Raises BrokerUnreachable, BrokerDenied `broker.denied`."""
        answer = self._send("GET", f"{PLUGIN}/collateral?nonce={nonce.hex()}", limit=MAX_COLLATERAL)
        return self._ok(answer, "broker.denied")

    def challenge(self) -> str:
        """Open a session. Raises BrokerUnreachable, BrokerDenied `broker.version`, `broker.denied`."""
        self._cookie = None  # an old session's cookie would join the new request to it
        answer = self._send("POST", f"{PREFIX}/auth", body=Request(VERSION, "tdx").build(), limit=MAX_CHALLENGE)
        body = self._ok(answer, "broker.denied")
        if self._cookie is None:
            raise _protocol("the broker set no session cookie")
        try:
            return Challenge.parse(body).nonce
        except MalformedEvidence as e:
            raise _protocol(e.detail) from e

    def attest(self, nonce: str, public_jwk: dict[str, str], evidence: CompositeEvidence, init_data: str | None) -> str:
        """Send Evidence; the token. Raises BrokerUnreachable, BrokerDenied `broker.attest`."""
        body = Attestation.of(nonce, public_jwk, evidence, init_data).build()
        answer = self._send("POST", f"{PREFIX}/attest", body=body, limit=MAX_ATTESTATION)
        try:
            return parse_token(self._ok(answer, "broker.attest"))
        except MalformedEvidence as e:
            raise _protocol(e.detail) from e

    def release(self, resource: str) -> bytes:
        """The sealed resource, a flattened JWE. Raises BrokerUnreachable, BrokerDenied `broker.resource`."""
        try:
            path = parse_path(resource)
        except MalformedEvidence as e:
            raise ConfigError("config.value", e.detail, hint="kbs:///repository/type/tag") from e
        return self._ok(self._send("GET", f"{PREFIX}/resource/{path}", limit=MAX_RESPONSE), "broker.resource")

    def certify(self, request_der: bytes) -> bytes:
        """Certificate chain, PEM, leaf first. Raises BrokerUnreachable, BrokerDenied `broker.denied`."""
        answer = self._send(
            "POST", f"{PLUGIN}/certificate", body=request_der, limit=64 << 10, kind="application/pkcs10"
        )
        return self._ok(answer, "broker.denied")

    def lease(self) -> bytes:
        """Leave to go on serving: JSON. Raises BrokerUnreachable, BrokerDenied `broker.denied`."""
        return self._ok(self._send("GET", f"{PLUGIN}/lease", limit=4096), "broker.denied")

    def close(self) -> None:
        """Forget the session and hang up."""
        self._cookie = None
        self._transport.close()

    def _send(
        self, method: str, path: str, *, limit: int, body: bytes | None = None, kind: str = "application/json"
    ) -> Answer:
        where = self._transport.path + path.partition("?")[0]
        headers: dict[str, str] = {} if body is None else {"Content-Type": kind}
        if self._cookie is not None and self._cookie.fits(where):
            headers["Cookie"] = self._cookie.build()
        answer = self._transport.exchange(method, path, body=body, headers=headers, limit=limit)
        for header in answer.cookies:
            self._cookie = Cookie.parse(header, where) or self._cookie
        return answer

    @staticmethod
    def _ok(answer: Answer, code: str) -> bytes:
        if answer.status != 200:
            deny(answer, code)
        return answer.body


def _protocol(detail: str) -> BrokerUnreachable:
    return BrokerUnreachable("broker.protocol", detail, hint="the broker must speak KBS protocol 0.4.0")


_HINTS: Mapping[str, str] = {
    "broker.version": "this agent speaks KBS protocol 0.4.0: Trustee v0.14 or later",
    "broker.attest": "compare the Evidence with the broker's policy; its audit log has the reason",
    "broker.resource": "does the broker hold this resource, and do its rules release it to this guest now?",
    "broker.denied": "the broker's audit log has the reason",
}
# What our broker says of a session that it does not have, or whose token is over. Trustee says so of a GET alone, and
# without a cause: its answer to /attest is the same for a lost session and for Evidence that it refuses.
_LOST = re.compile(r"Attestation error: RCAR handshake Attest failed: session\.(unknown|none): ")
_LOST_LATER = re.compile(r"Token Verifier error(: session\.(unknown|expired): |\Z)")


def deny(answer: Answer, code: str) -> NoReturn:
    """Turn an answer that is not 200 into a refusal that carries the broker's own words.

    Raises BrokerDenied `broker.version` or `code` for a verdict; BrokerUnreachable where there is none:
    `broker.unavailable`, `broker.session`, `broker.protocol`.
    """
    if answer.status >= 500:
        raise BrokerUnreachable("broker.unavailable", _words(answer), hint="see the broker's log")
    if answer.status not in (401, 403, 404):
        raise _protocol(f"HTTP status {answer.status}")
    try:
        said = ErrorInformation.parse(answer.body)
    except MalformedEvidence as e:
        raise _protocol(f"HTTP status {answer.status} without the protocol's error object") from e
    if said.variant == "TokenNotFound" or _LOST.match(said.detail) or _LOST_LATER.match(said.detail):
        hint = "a broker that restarts, or is flooded, forgets sessions: attest again"
        raise BrokerUnreachable("broker.session", _words(answer), hint=hint)
    if "KBS Client Protocol Version Mismatch" in said.detail:
        code = "broker.version"
    raise BrokerDenied(code, _words(answer), hint=_HINTS[code])


def _words(answer: Answer) -> str:
    """A peer's text, onto a console."""
    try:
        said = ErrorInformation.parse(answer.body)
    except MalformedEvidence:
        return f"HTTP status {answer.status}"
    return re.sub(r"[^\x20-\x7e]", "?", f"{said.variant}: {said.detail}")[:500]
