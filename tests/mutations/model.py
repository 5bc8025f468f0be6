"""A good release in its parts, and what one mutation makes of them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from antechamber.broker.messages import PREFIX
from antechamber.evidence.composite import CompositeEvidence, additional_evidence, device_nonce, report_data
from antechamber.simulator.deployment import MODEL_KEY
from antechamber.simulator.load import Ready

RESOURCE = f"{PREFIX}/resource/{MODEL_KEY}"
UPLOAD = f"{PREFIX}/resource/default/upload/1"
Flow = Literal["auth", "attest", "release", "admin"]
Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Sent:
    """One request as it goes over the wire; the headers that frame the body are added unless they are there."""

    method: str
    target: str
    headers: Headers
    body: bytes = b""

    def having(self, name: str, *values: str) -> "Sent":
        """The header with these values instead of its own; with none, without it."""
        kept = tuple(h for h in self.headers if h[0].lower() != name.lower())
        return replace(self, headers=kept + tuple((name, value) for value in values))


@dataclass(frozen=True)
class Good:
    """What a guest has that would get its key, and an owner's token. A release spends it: then there is another."""

    ready: Ready
    nonce: str
    cookie: str  # an open session, for Evidence over `nonce`
    evidence: CompositeEvidence
    attested: str  # the cookie of a session that has been attested
    token: str  # that session's
    admin: str

    def attestation(self, evidence: CompositeEvidence | None = None) -> dict[str, Any]:
        parts = evidence or self.evidence
        return {
            "init-data": None,
            "runtime-data": {"nonce": self.nonce, "tee-pubkey": dict(self.ready.guest.tee.public_jwk)},
            "tee-evidence": {"primary_evidence": parts.primary(), "additional_evidence": parts.additional},
        }

    def quoted_over(self, additional: str) -> CompositeEvidence:
        """The same guest's Evidence, had the devices said this: well signed."""
        guest = self.ready.guest
        quote = guest.machine.quote(report_data(self.nonce, guest.tee.public_jwk, additional))
        return CompositeEvidence(quote, self.ready.log, additional)

    def device_nonce(self) -> bytes:
        return device_nonce(self.nonce, self.ready.guest.tee.public_jwk)

    def with_device(self, *, report: bytes | None = None, certificate: bytes | None = None) -> CompositeEvidence:
        """Evidence whose one GPU says this; the quote is over it."""
        (device,) = self.evidence.devices()
        changed = replace(device, report=report or device.report, certificate=certificate or device.certificate)
        return self.quoted_over(additional_evidence([changed]))

    # -- the good requests

    def auth(self, body: bytes | None = None) -> Sent:
        good = {"version": "0.4.0", "tee": "tdx", "extra-params": {"supported-hash-algorithms": ["sha384"]}}
        return Sent("POST", f"{PREFIX}/auth", _HEADERS, json.dumps(good).encode() if body is None else body)

    def attest(self, body: Mapping[str, Any] | bytes | None = None) -> Sent:
        sent = self.attestation() if body is None else body
        raw = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
        return Sent("POST", f"{PREFIX}/attest", (*_HEADERS, ("Cookie", self.cookie)), raw)

    def release(self) -> Sent:
        return Sent("GET", RESOURCE, (*_HEADERS, ("Cookie", self.attested)))

    def release_by_token(self, token: str | None = None) -> Sent:
        return Sent("GET", RESOURCE, (*_HEADERS, ("Authorization", f"Bearer {token or self.token}")))

    def upload(self, token: str | None = None) -> Sent:
        return Sent("POST", UPLOAD, (*_HEADERS, ("Authorization", f"Bearer {token or self.admin}")), b"value")


_HEADERS: Headers = (("Host", "localhost"), ("Content-Type", "application/json"), ("Accept", "application/json"))


@dataclass(frozen=True)
class Mutation:
    """`flow` says what a success would be: `attest` is followed by a GET of the model key in the same session.

    `neutral`: why it changes nothing, so that the key is released all the same; or decides it for what was made. None:
    the credential and what it opens are as they were, so the key may go out, or the request be refused for its form.
    """

    name: str
    flow: Flow
    build: Callable[[Good], Sent]
    neutral: str | Callable[[Good, Sent], bool | None] = ""

    def expects_release(self, good: Good, sent: Sent) -> bool | None:
        return self.neutral(good, sent) if callable(self.neutral) else bool(self.neutral)
