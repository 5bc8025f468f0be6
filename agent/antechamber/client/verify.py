"""A guest's Evidence over our own nonce, appraised, and bound to the key of the connection."""

import dataclasses
import os
import time
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from antechamber.client.fetch import Fetched, Origin, fresh_bundle, stored_bundle
from antechamber.errors import AppraisalRefused, MalformedEvidence
from antechamber.evidence.appraise import AttestationResult, Claim
from antechamber.evidence.bundle import Bundle, parse_bundle, sha384, verify_bundle
from antechamber.evidence.certificates import CERTIFICATE_ERRORS
from antechamber.evidence.policy import Policy

NONCE_BYTES = 32


@dataclass(frozen=True, slots=True)
class Pinned:
    """A guest as it was appraised. Whoever connects on the strength of it asks `result` first (`pinned`)."""

    origin: Origin
    certificate: bytes  # DER, of the connection that the Evidence came over
    bundle: Bundle
    result: AttestationResult

    @property
    def text(self) -> bytes:
        """The bundle exactly as it was served."""
        return self.bundle.text


def verify_url(url: str, policy: Policy, *, quote_sha256: str | None = None) -> tuple[AttestationResult, Pinned]:
    """Verify the guest at `https://host[:port]`, or with `quote_sha256` the Evidence of a past answer of its.

    1. the bundle comes over a connection whose certificate we keep
    2. it verifies and is appraised: over our own nonce now, or as it was at the broker-signed time in it
    3. the key it names is the connection's

    Raises ConfigError `endpoint.*`, EndpointUnreachable, MalformedEvidence, AppraisalRefused; a claim that fails
    is in the result.
    """
    origin, nonce = Origin.parse(url), os.urandom(NONCE_BYTES)
    if quote_sha256 is None:
        fetched = fresh_bundle(origin, nonce)  # 1
        bundle = parse_bundle(fetched.body)
        result = verify_bundle(bundle, policy, nonce=nonce, now=int(time.time()))  # 2
    else:
        fetched, bundle = fetch_call(origin, quote_sha256)  # 1
        result = verify_bundle(bundle, policy, nonce=None, now=None)  # 2
    result = dataclasses.replace(result, claims=(*result.claims, key_claim(fetched.certificate, bundle)))  # 3
    return result, Pinned(origin, fetched.certificate, bundle, result)


def fetch_call(origin: Origin, quote_sha256: str) -> tuple[Fetched, Bundle]:
    """The bundle of a past answer, unverified. Raises AppraisalRefused `endpoint.evidence` if it is another's."""
    fetched = stored_bundle(origin, quote_sha256)
    bundle = parse_bundle(fetched.body)
    if bundle.quote_sha256 != quote_sha256:
        raise AppraisalRefused(
            "endpoint.evidence",
            f"its quote's digest is {bundle.quote_sha256}",
            hint="this is not the answer's evidence",
        )
    return fetched, bundle


def key_claim(certificate: bytes, bundle: Bundle) -> Claim:
    """Whether the Evidence binds the certificate's key. Raises MalformedEvidence `endpoint.certificate`."""
    seen, wanted = sha384(public_key(certificate)), sha384(bundle.tls_spki)
    held = seen == wanted
    return Claim("tls-key", "held" if held else "failed", seen, wanted, "" if held else "appraisal.tls-key")


def public_key(certificate: bytes) -> bytes:
    """SubjectPublicKeyInfo of a certificate, both in DER. Raises MalformedEvidence `endpoint.certificate`."""
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
        return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except CERTIFICATE_ERRORS as e:
        raise MalformedEvidence("endpoint.certificate", "not a certificate", hint="see what serves that port") from e
