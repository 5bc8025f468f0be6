"""The Appraisal Policy: what a Verifier or Relying Party accepts. Nothing is accepted by omission."""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cryptography import x509

from antechamber import strict
from antechamber.errors import ConfigError
from antechamber.evidence.anchors import Anchors
from antechamber.evidence.certificates import CERTIFICATE_ERRORS

Pin = tuple[str, ...] | Literal["zero", "unpinned"]

STATUSES = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
)
PINNED_EVENTS = ("config", "init-data", "engine", "model", "gpu")  # `tls`, `receipt` are fresh in each boot
_CONTENT = re.compile(r"sha(256:[0-9a-f]{64}|384:[0-9a-f]{96})\Z")


def _refuse(key: str, seen: object, wanted: str) -> ConfigError:
    return ConfigError("policy.value", f"{key} is {seen!r}", hint=wanted)


def _hex_pin(key: str, pin: Pin, size: int, *, words: tuple[str, ...]) -> None:
    if isinstance(pin, str):
        if pin not in words:
            raise _refuse(key, pin, f"a list of {size * 2}-digit hex values{''.join(f' or {w}' for w in words)}")
        return
    if not pin:
        raise _refuse(key, [], "an empty list accepts nothing: list values")
    for value in pin:
        if not re.fullmatch(rf"[0-9a-f]{{{size * 2}}}", value):
            raise _refuse(key, value, f"{size * 2} lower-case hex digits")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorsPolicy:
    """`anchors:`: whose Endorsements count."""

    intel: str  # "intel", or PEM: every result then names a simulated anchor
    nvidia: str  # "nvidia", or PEM

    def __post_init__(self) -> None:
        self.anchors()

    def anchors(self) -> Anchors:
        return Anchors.parse(intel=self.intel, nvidia=self.nvidia, error=ConfigError, code="policy.value")


@dataclass(frozen=True, slots=True, kw_only=True)
class CollateralPolicy:
    """`collateral:`: whose collateral-and-time bundle, and how old."""

    signer: str  # Ed25519 public key, 32 bytes, standard base64
    max_age_s: int  # of its signed time, against the Verifier's clock
    max_issue_age_s: int  # of Intel's issue dates, the oldest of TCB info's and QE identity's
    min_tcb_eval: int  # tcbEvaluationDataNumber: an older data set is a roll-back

    def __post_init__(self) -> None:
        signer_key(self.signer)
        for name in ("max_age_s", "max_issue_age_s"):
            if not 1 <= getattr(self, name) <= 30 * 86400:
                raise _refuse(f"collateral.{name}", getattr(self, name), "1 to 2592000")
        if self.min_tcb_eval < 1:
            raise _refuse("collateral.min_tcb_eval", self.min_tcb_eval, "at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxPolicy:
    """`tdx:`. Hex values are lower case; registers 48 bytes, attributes and XFAM 8 bytes as in the quote."""

    mr_td: Pin
    rtmr0: Pin  # depends on the VM's shape
    rtmr1: Pin
    rtmr2: Pin
    mr_config_id: Pin  # the host chooses it: pinned, or zero
    mr_owner: Pin
    mr_owner_config: Pin
    mr_seam: Pin
    td_attributes: tuple[str, ...]
    xfam: tuple[str, ...]
    tcb_status: tuple[str, ...]
    advisories: tuple[str, ...]  # accepted by name; with any other the quote is refused

    def __post_init__(self) -> None:
        _hex_pin("tdx.mr_td", self.mr_td, 48, words=())
        for name in ("rtmr0", "rtmr1", "rtmr2", "mr_seam"):
            _hex_pin(f"tdx.{name}", getattr(self, name), 48, words=("unpinned",))
        for name in ("mr_config_id", "mr_owner", "mr_owner_config"):
            _hex_pin(f"tdx.{name}", getattr(self, name), 48, words=("zero",))
        _hex_pin("tdx.td_attributes", self.td_attributes, 8, words=())
        _hex_pin("tdx.xfam", self.xfam, 8, words=())
        if not self.tcb_status or not set(self.tcb_status) <= set(STATUSES):
            raise _refuse("tdx.tcb_status", self.tcb_status, f"one or more of {', '.join(STATUSES)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPolicy:
    """`gpu:`. What this version does not appraise must be accepted in so many words."""

    count: int
    arch: tuple[str, ...]
    modes: tuple[Literal["spt", "mpt", "ppcie", "unknown"], ...]
    driver_min: str  # 570.124.06
    vbios: tuple[str, ...] | Literal["unpinned"]
    measurements: Literal["not-appraised"]  # against RIMs
    revocation: Literal["not-appraised"]  # OCSP, CRLs

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 8:
            raise _refuse("gpu.count", self.count, "1 to 8")
        if not re.fullmatch(r"\d{3}(\.\d{1,3}){1,2}", self.driver_min):
            raise _refuse("gpu.driver_min", self.driver_min, "a driver version such as 570.124.06")
        if not self.arch or not self.modes or not self.vbios:
            raise _refuse("gpu.arch, gpu.modes or gpu.vbios", (), "an empty list accepts nothing: list values")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultPolicy:
    """`attestation_result:`: whose EAR token must stand beside the Evidence."""

    ca: str  # PEM: the token signer's chain ends there

    def __post_init__(self) -> None:
        try:
            x509.load_pem_x509_certificate(self.ca.encode())
        except CERTIFICATE_ERRORS as e:
            raise _refuse("attestation_result.ca", self.ca[:40], "the broker's token CA as PEM text") from e


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A whole Appraisal Policy, one YAML document."""

    version: Literal[1]
    anchors: AnchorsPolicy
    collateral: CollateralPolicy
    tdx: TdxPolicy
    events: Mapping[str, Pin]  # config, init-data, engine, model, gpu: content, or "unpinned"
    gpu: GpuPolicy
    attestation_result: ResultPolicy | Literal["not-appraised"]  # the broker, which issues it, appraises none

    def __post_init__(self) -> None:
        if set(self.events) != set(PINNED_EVENTS):
            raise _refuse("events", sorted(self.events), f"exactly {', '.join(PINNED_EVENTS)}")
        for name, pin in self.events.items():
            if pin == "unpinned" and name != "model":
                continue
            if isinstance(pin, str) or not pin or not all(map(_CONTENT.match, pin)):
                raise _refuse(f"events.{name}", pin, "list sha256:<hex> or sha384:<hex> contents")


def open_ends(policy: Policy) -> tuple[str, ...]:
    """What a policy accepts that another would not, in words: for whoever reviews it."""
    tdx, gpu = policy.tdx, policy.gpu
    found = [] if policy.anchors.anchors().vendors else [f"anchors: {policy.anchors.anchors()}"]
    found += [f"tdx.{n}: any value" for n in ("rtmr0", "rtmr1", "rtmr2", "mr_seam") if getattr(tdx, n) == "unpinned"]
    found += [f"tdx.tcb_status: {status}" for status in tdx.tcb_status if status != "UpToDate"]
    found += [f"tdx.advisories: {advisory}" for advisory in tdx.advisories]
    found += [f"events.{name}: any content" for name, pin in policy.events.items() if pin == "unpinned"]
    found += ["gpu.vbios: any version"] if gpu.vbios == "unpinned" else []
    found += [f"gpu.{name}: not appraised" for name in ("measurements", "revocation")]
    found += ["attestation_result: not appraised"] if policy.attestation_result == "not-appraised" else []
    return tuple(found)


def load_policy(text: str | bytes) -> Policy:
    """An Appraisal Policy from YAML; empty or incomplete refuses. Raises ConfigError `policy.*`."""
    return strict.load_yaml(text, Policy, error=ConfigError, family="policy")


def signer_key(text: str, code: str = "policy.value") -> bytes:
    """The 32 bytes of a base64 Ed25519 public key. Raises ConfigError `code`."""
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 32:
        raise ConfigError(code, f"the signer is {text!r:.80}", hint="base64 of an Ed25519 public key, 32 bytes")
    return key
