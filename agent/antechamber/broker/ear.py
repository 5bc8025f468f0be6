"""The broker's Attestation Result, signed: EAR claims in the members that Trustee and its clients read.

Source: KBS protocol 0.4.0, attestation token; draft-fv-rats-ear.
"""

import base64
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from antechamber import __version__
from antechamber.broker.authority import key_pem
from antechamber.broker.messages import b64url
from antechamber.errors import BrokerDenied
from antechamber.evidence.appraise import VerifiedEvidence
from antechamber.evidence.ear import EVIDENCE, MAX_TOKEN, PROFILE
from antechamber.evidence.eventlog import AaelEvent
from antechamber.evidence.tdx import Quote

ISSUER = "antechamber-broker"
TOKEN_S = 300  # a token lives 5 minutes
_NONE = {"instance-identity": 0, "file-system": 0, "runtime-opaque": 0, "storage-opaque": 0, "sourced-data": 0}
_TRUST = {  # AR4SI tiers: 2..31 affirming, 96.. contraindicated
    "affirming": {"configuration": 2, "executables": 3, "hardware": 2},
    "contraindicated": {"configuration": 96, "executables": 96, "hardware": 97},
}
_REGISTERS = (
    "mr_seam", "mrsigner_seam", "seam_attributes", "td_attributes", "xfam", "mr_td", "mr_config_id", "mr_owner",
    "mr_owner_config", "report_data",
)  # fmt: skip
# Source: Intel TDX Module ABI, TD_ATTRIBUTES; the names are Trustee's.
_ATTRIBUTES = {"debug": 0, "septve_disable": 28, "protection_keys": 30, "key_locker": 31, "perfmon": 63}


@dataclass(frozen=True, repr=False)  # no slots: the header is composed once
class TokenSigner:
    """Signs tokens; `chain` is leaf and CA."""

    key: ec.EllipticCurvePrivateKey
    chain: Sequence[x509.Certificate]

    def sign(self, claims: Mapping[str, Any]) -> str:
        """ES256 JWS whose header carries the chain, as Trustee reads it: inside `jwk`.

        Raises BrokerDenied `broker.fault` for a token that `parse_ear` would refuse for its size.
        """
        from joserfc import jwt  # noqa: PLC0415  # an extra, that a guest does without

        token = jwt.encode(dict(self._header), dict(claims), self._jwk, algorithms=["ES256"])
        if len(token) > MAX_TOKEN:
            raise BrokerDenied("broker.fault", f"a token of {len(token)} characters", hint=f"at most {MAX_TOKEN}")
        return token

    @cached_property
    def _header(self) -> dict[str, Any]:
        numbers = self.key.public_key().public_numbers()
        x, y = (b64url(n.to_bytes(32, "big")) for n in (numbers.x, numbers.y))
        x5c = [base64.b64encode(c.public_bytes(Encoding.DER)).decode() for c in self.chain]
        jwk = {"kty": "EC", "crv": "P-256", "alg": "ES256", "x": x, "y": y, "x5c": x5c}
        return {"typ": "JWT", "alg": "ES256", "jwk": jwk}

    @cached_property
    def _jwk(self) -> Any:
        from joserfc.jwk import ECKey  # noqa: PLC0415

        return ECKey.import_key(key_pem(self.key))


def compose_claims(
    verified: VerifiedEvidence,
    *,
    nonce: str,
    pubkey: Mapping[str, str],
    policy: str | None,
    now: int,
) -> dict[str, Any]:
    """EAR claims: affirming if the policy named `policy` held, else contraindicated. `jti` is fresh."""
    status = "contraindicated" if policy is None else "affirming"
    submod = {
        "ear.status": status,
        "ear.trustworthiness-vector": _NONE | _TRUST[status],
        "ear.appraisal-policy-id": policy or "none",
    }
    body = verified.quote.body
    evidence = {
        "tdx": _tdx(verified),
        "report_data": body.report_data.hex(),
        "init_data": body.mr_config_id.hex(),
        "runtime_data_claims": {"nonce": nonce, "tee-pubkey": dict(pubkey)},
        "init_data_claims": None,
    }
    return {
        "eat_profile": PROFILE,
        "iat": now,
        "exp": now + TOKEN_S,
        "iss": ISSUER,
        "jti": secrets.token_hex(16),
        "ear.verifier-id": {"developer": "antechamber", "build": f"antechamber {__version__}"},
        "tee-pubkey": dict(pubkey),
        "submods": {"cpu0": submod | {EVIDENCE: evidence}} | _devices(verified, submod),
    }


def _devices(verified: VerifiedEvidence, submod: Mapping[str, Any]) -> dict[str, Any]:
    """gpu0, gpu1, .. and switch0, ..: a counter for each class."""
    submods: dict[str, Any] = {}
    counts = {"gpu": 0, "switch": 0}
    for gpu in verified.gpus:
        kind = "switch" if gpu.arch == "LS10" else "gpu"
        submods[f"{kind}{counts[kind]}"] = dict(submod) | {EVIDENCE: {"nvidia": gpu.to_json()}}
        counts[kind] += 1
    return submods


def _tdx(verified: VerifiedEvidence) -> dict[str, Any]:
    tdx = verified.tdx
    return {
        "quote": _quote(verified.quote),
        "td_attributes": {name: bool(verified.quote.body.attributes >> bit & 1) for name, bit in _ATTRIBUTES.items()},
        "uefi_event_logs": [_event(e) for e in verified.events],  # RTMR3's: all others would not fit a header
        "tcb_status": tdx.tcb_status,
        "advisory_ids": list(tdx.advisory_ids),
        "tcb_eval_num": tdx.tcb_eval,
        "collateral_expiration_status": "0",
        "fmspc": tdx.fmspc,
        "root_key_id": tdx.root_key_id.hex(),
        "anchor": tdx.anchor,
    }


def _quote(quote: Quote) -> dict[str, Any]:
    body = quote.body
    registers = {name: getattr(body, name).hex() for name in _REGISTERS}
    registers |= {f"rtmr_{i}": value.hex() for i, value in enumerate(body.rtmr)}
    header = {
        "version": quote.raw[:2].hex(),
        "att_key_type": quote.raw[2:4].hex(),
        "tee_type": quote.raw[4:8].hex(),
        "reserved": quote.raw[8:12].hex(),
        "vendor_id": quote.raw[12:28].hex(),
        "user_data": quote.user_data.hex(),
    }
    registers["tcb_svn"] = body.tee_tcb_svn.hex()
    if body.tee_tcb_svn2 is not None and body.mr_servicetd is not None:
        registers |= {"tee_tcb_svn2": body.tee_tcb_svn2.hex(), "mr_servicetd": body.mr_servicetd.hex()}
    found: dict[str, Any] = {"header": header, "body": registers}
    return found if quote.version == 4 else found | {"type": quote.raw[48:50].hex(), "size": quote.raw[50:54].hex()}


def _event(event: AaelEvent) -> dict[str, Any]:
    data = {"domain": event.domain, "operation": event.operation, "content": event.content}
    return {
        "index": 4,  # CCMR: RTMR3
        "type_name": "EV_EVENT_TAG",
        "digests": [{"alg": "SHA-384", "digest": event.digest().hex()}],
        "digest_matches_event": True,
        "details": {"string": event.text, "data": data},
    }
