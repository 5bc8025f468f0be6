"""The serving bundle: what a guest shows its callers, and what REPORTDATA binds of it.

REPORTDATA = SHA-384(LABEL || transcript) || 16 zero bytes, over the transcript's exact bytes: they travel as text
in the bundle and are never serialised again. The GPUs sign the nonce SHA-256(GPU_LABEL || nonce || SHA-384(SPKI)).
"""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from antechamber import strict
from antechamber.errors import AppraisalRefused, MalformedEvidence
from antechamber.evidence import ear
from antechamber.evidence.appraise import AttestationResult, Claim, appraise, event_content, malformed, verify
from antechamber.evidence.collateral import Collateral, open_collateral
from antechamber.evidence.composite import CompositeEvidence, canonical, decode
from antechamber.evidence.eventlog import AaelEvent
from antechamber.evidence.policy import Policy, signer_key

FORMAT = "antechamber-evidence/1"
LABEL = b"antechamber/serve/v1\0"
GPU_LABEL = b"antechamber/gpu-nonce/v1\0"
MAX_BUNDLE = 8 << 20  # bytes
MAX_STRUCTURE = 10_000  # of `{[,:`: a bundle has few values, and long ones
CLOCK_SKEW_S = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """What the quote commits to. Digests are lower-case hex."""

    format: Literal["antechamber-transcript/1"]
    nonce: str  # the caller's, 16 to 64 bytes as hex
    tls: str  # sha384:<hex> of the TLS key's SubjectPublicKeyInfo
    receipt: str  # sha384:<hex> of the receipt key's
    model: str  # MODEL_HASH
    engine: str  # sha384:<hex>, content of the `engine` event
    gpu_evidence: str  # sha384:<hex> of the additional-evidence text
    collateral: str  # sha384:<hex> of the signed collateral-and-time envelope: not older than the quote
    attestation_result: str  # sha384:<hex> of the broker's EAR text


@dataclass(frozen=True, slots=True)
class Bundle:
    """A parsed bundle; `transcript_text` is what REPORTDATA hashes."""

    transcript_text: str
    transcript: Transcript
    evidence: CompositeEvidence
    collateral: bytes
    ear: str
    tls_spki: bytes
    receipt_spki: bytes
    text: bytes

    @property
    def nonce(self) -> bytes:
        return bytes.fromhex(self.transcript.nonce)

    @property
    def quote_sha256(self) -> str:
        return hashlib.sha256(self.evidence.quote).hexdigest()


def sha384(data: bytes) -> str:
    """`sha384:<hex>`."""
    return "sha384:" + hashlib.sha384(data).hexdigest()


def transcript_text(transcript: Transcript) -> str:
    """The exact text that REPORTDATA binds."""
    return canonical({name: getattr(transcript, name) for name in transcript.__dataclass_fields__}).decode()


def report_data(text: str) -> bytes:
    """64 bytes."""
    return hashlib.sha384(LABEL + text.encode()).digest() + bytes(16)


def gpu_nonce(nonce: bytes, tls_spki: bytes) -> bytes:
    """32 bytes."""
    return hashlib.sha256(GPU_LABEL + nonce + hashlib.sha384(tls_spki).digest()).digest()


def compose(
    *, text: str, evidence: CompositeEvidence, collateral: bytes, token: str, tls_spki: bytes, receipt_spki: bytes
) -> bytes:
    """The bundle as it is served: JSON."""
    body = {
        "format": FORMAT,
        "transcript": text,
        "tdx": evidence.primary(),
        "additional_evidence": evidence.additional,
        "collateral": collateral.decode(),
        "attestation_result": token,
        "tls_spki": base64.b64encode(tls_spki).decode(),
        "receipt_spki": base64.b64encode(receipt_spki).decode(),
    }
    return json.dumps(body, separators=(",", ":")).encode()


_KEYS = {
    "format", "transcript", "tdx", "additional_evidence", "collateral", "attestation_result",
    "tls_spki", "receipt_spki",
}  # fmt: skip


def parse_bundle(text: bytes) -> Bundle:
    """Raises MalformedEvidence `bundle.*`, `evidence.*`."""
    value: Any = strict.load_json(
        text, error=MalformedEvidence, family="bundle", limit=MAX_BUNDLE, structure=MAX_STRUCTURE
    )
    if not isinstance(value, dict) or set(value) != _KEYS or value["format"] != FORMAT:
        raise malformed("bundle.shape", f"not a {FORMAT} document")
    if not all(isinstance(value[k], str) for k in _KEYS - {"tdx"}):
        raise malformed("bundle.shape", "a member is not text")
    inner = strict.load_json(value["transcript"], error=MalformedEvidence, family="bundle", limit=1 << 16)
    transcript = strict.build(inner, Transcript, error=MalformedEvidence, family="bundle")
    if not re.fullmatch(r"([0-9a-f]{2}){16,64}", transcript.nonce):
        raise malformed("bundle.nonce", "the nonce is not 16 to 64 bytes of hex")
    return Bundle(
        transcript_text=value["transcript"],
        transcript=transcript,
        evidence=CompositeEvidence.from_kbs(value["tdx"], value["additional_evidence"]),
        collateral=value["collateral"].encode(),
        ear=value["attestation_result"],
        tls_spki=decode(value["tls_spki"], 4096),
        receipt_spki=decode(value["receipt_spki"], 4096),
        text=text,
    )


def verify_bundle(bundle: Bundle, policy: Policy, *, nonce: bytes | None, now: int | None) -> AttestationResult:
    """Verify and appraise a bundle.

    `nonce`: the caller's own, or None for a saved bundle, of which nobody then knows that it is fresh: it is good for
    an audit, and the claim `nonce` says so. `now`: the Relying Party's clock in seconds since the
    epoch, or None to judge a saved bundle at the broker-signed time in it, and at no time that it merely claims.

    1. the collateral-and-time envelope is signed by the pinned signer
    2. the clock agrees with the signed time
    3. the transcript binds what stands beside it
    4. the Evidence verifies over the transcript
    5. the runtime events name these keys and this model
    6. the broker's EAR is for this guest, unless the policy says that it is not appraised
    7. the policy, and that the GPUs are those measured at boot: their `gpu` event is computed again

    A claim that fails, the nonce's and the clock's too, is in the result; what does not verify raises.

    Raises MalformedEvidence, AppraisalRefused.
    """
    collateral = open_collateral(bundle.collateral, signer_key(policy.collateral.signer), nonce=None, floor=0)  # 1
    at = collateral.time if now is None else now
    clock = clock_claim(collateral, policy, at)  # 2
    bound = transcript_claims(bundle, nonce)  # 3
    verified = verify(  # 4
        bundle.evidence,
        report_data=report_data(bundle.transcript_text),
        gpu_nonce=gpu_nonce(bundle.nonce, bundle.tls_spki),
        anchors=policy.anchors.anchors(),
        collateral=collateral,
        now=at,
    )
    named = named_claims(bundle, verified.events)  # 5
    result = result_claims(bundle, policy, at)  # 6
    appraised = appraise(verified, policy, phase="released")  # 7
    return AttestationResult((clock, *bound, *named, *result, *appraised.claims), appraised.anchor, at)


def clock_claim(collateral: Collateral, policy: Policy, at: int) -> Claim:
    """Whether the signed time and the clock agree."""
    age, limit = at - collateral.time, policy.collateral.max_age_s
    held = -CLOCK_SKEW_S <= age <= limit
    code = "" if held else "appraisal.collateral-age"
    return Claim("collateral age", "held" if held else "failed", f"{age} s", f"at most {limit} s", code)


def _same(name: str, seen: str, wanted: str) -> Claim:
    held = seen == wanted
    return Claim(name, "held" if held else "failed", seen, wanted, "" if held else "appraisal.bundle")


def named_claims(bundle: Bundle, events: Sequence[AaelEvent]) -> list[Claim]:
    """Whether the runtime events name the bundle's keys and model."""
    return [
        _same(f"bundle {name}", event_content(events, name) or "absent", getattr(bundle.transcript, name))
        for name in ("tls", "receipt", "model", "engine")
    ]


def transcript_claims(bundle: Bundle, nonce: bytes | None) -> list[Claim]:
    """Whether the transcript binds what stands beside it, and answers the nonce, where there is one."""
    t = bundle.transcript
    if nonce is None:
        fresh = Claim("nonce", "not-appraised", t.nonce, "the saved bundle's own nonce")
    else:
        held = bundle.nonce == nonce
        fresh = Claim("nonce", "held" if held else "failed", t.nonce, nonce.hex(), "" if held else "appraisal.nonce")
    return [
        fresh,
        _same("transcript tls", sha384(bundle.tls_spki), t.tls),
        _same("transcript receipt", sha384(bundle.receipt_spki), t.receipt),
        _same("transcript gpu_evidence", sha384(bundle.evidence.additional.encode()), t.gpu_evidence),
        _same("transcript collateral", sha384(bundle.collateral), t.collateral),
        _same("transcript attestation_result", sha384(bundle.ear.encode()), t.attestation_result),
    ]


def result_claims(bundle: Bundle, policy: Policy, at: int) -> list[Claim]:
    """Whether the broker's EAR is for this guest."""
    if policy.attestation_result == "not-appraised":
        return [Claim("attestation result", "not-appraised", "an EAR", "any, as the policy says")]
    try:
        claims = ear.parse_ear(bundle.ear, policy.attestation_result.ca, at)
    except (AppraisalRefused, MalformedEvidence) as e:
        return [Claim("attestation result", "failed", e.detail, "a valid EAR", "appraisal.ear")]
    held = claims.status == "affirming" and claims.tls == bundle.transcript.tls
    seen = f"{claims.status}, for {claims.tls or 'no TLS key'}"
    return [Claim("attestation result", "held" if held else "failed", seen, "affirming, for this TLS key",
                  "" if held else "appraisal.ear")]  # fmt: skip
