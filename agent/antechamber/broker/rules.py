"""The broker's rules: which resource goes to which guest, in which phase of its life. What no rule names is denied."""

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from antechamber import log, strict
from antechamber.broker.messages import parse_path
from antechamber.errors import AgentError, AppraisalRefused, BrokerDenied, ConfigError, MalformedEvidence
from antechamber.evidence.appraise import VerifiedEvidence, appraise
from antechamber.evidence.policy import AnchorsPolicy, Policy

R = TypeVar("R")
MAX_DETAIL = 500  # characters: a session keeps it
KEPT_S = 366 * 86400  # how long a release is remembered
MAX_LIVE_S = 7 * 86400
_NAME = re.compile(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.:-]{0,251}[A-Za-z0-9])?\Z")


def _refuse(key: str, detail: str) -> ConfigError:
    return ConfigError("rules.value", f"{key}: {detail}", hint="docs/examples/broker-policy.yaml has every key")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseLimit:
    """`releases:`: at most `max` in any `per_s` seconds, of all guests together."""

    max: int
    per_s: int

    def __post_init__(self) -> None:
        if self.max < 1:
            raise _refuse("releases.max", f"{self.max} is less than 1")
        if not 1 <= self.per_s <= KEPT_S:
            raise _refuse("releases.per_s", f"{self.per_s} is not 1 to {KEPT_S}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestLimit:
    """`at_once:`: at most `max` live guests that received it, a guest being one boot, by its TLS key.

    A guest is live until `lease_s` after its last lease, and before its first one until `boot_s` after the release.
    """

    max: int
    boot_s: int
    lease_s: int  # at least the guests' watch.grace_s, for which they go on without a lease

    def __post_init__(self) -> None:
        if self.max < 1:
            raise _refuse("at_once.max", f"{self.max} is less than 1")
        for name in ("boot_s", "lease_s"):
            if not 1 <= getattr(self, name) <= MAX_LIVE_S:
                raise _refuse(f"at_once.{name}", f"{getattr(self, name)} is not 1 to {MAX_LIVE_S}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceRule:
    """Who gets a resource, when, until when, how often, and how many guests at once.

    `phase: boot` releases it only until the guest has measured `released`, once, and ends the session; `released` only
    after; `any` in both.
    """

    policy: str
    phase: Literal["boot", "released", "any"]
    until: str  # 2027-01-01T00:00:00Z, or unlimited
    releases: ReleaseLimit | Literal["unlimited"]
    at_once: GuestLimit | Literal["unlimited"]

    def __post_init__(self) -> None:
        try:
            self.ends()
        except ValueError as e:
            raise _refuse("until", f"{self.until!r} is neither 2027-01-01T00:00:00Z nor unlimited") from e

    def ends(self) -> int | None:
        """Seconds since the epoch, or None."""
        return None if self.until == "unlimited" else strict.parse_utc(self.until)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateRule:
    """Who gets a certificate for the TLS key it measured, and for which names (DNS names, addresses)."""

    policy: str
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.names or not all(map(_NAME.match, self.names)):
            raise _refuse("certificates.names", "list DNS names or addresses")


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRule:
    """Who may go on serving."""

    policy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The whole rules file. An empty mapping, or a missing rule, denies."""

    version: Literal[1]
    anchors: AnchorsPolicy
    policies: Mapping[str, Policy]
    resources: Mapping[str, ResourceRule]
    certificates: CertificateRule | None = None
    lease: LeaseRule | None = None

    def __post_init__(self) -> None:
        for name, policy in self.policies.items():
            if policy.anchors.anchors() != self.anchors.anchors():
                raise _refuse(f"policies.{name}.anchors", "not the anchors that the broker verifies against")
            if policy.attestation_result != "not-appraised":
                raise _refuse(f"policies.{name}.attestation_result", "the broker issues the result and appraises none")
        for path in self.resources:
            try:
                parse_path(path)
            except MalformedEvidence as e:
                raise _refuse("resources", e.detail) from e
        rules = [*self.resources.values(), self.certificates, self.lease]
        for rule in rules:
            if rule is not None and rule.policy not in self.policies:
                raise _refuse("policy", f"{rule.policy!r} is not in policies")

    def holding(self, verified: VerifiedEvidence) -> str | None:
        """Name of the first policy that the Evidence meets, in the phase that it shows."""
        for name, policy in self.policies.items():
            if appraise(verified, policy, phase=verified.phase).ok:
                return name
        return None

    def closest(self, verified: VerifiedEvidence) -> tuple[str, str]:
        """Code and detail of the first claim that failed, of the first policy."""
        for name, policy in self.policies.items():
            try:
                appraise(verified, policy, phase=verified.phase).require()
            except AppraisalRefused as e:
                return e.code, f"policy {name}: {e.detail}"[:MAX_DETAIL]
        return "appraisal.empty", "no policy"

    def require_resource(self, path: str, verified: VerifiedEvidence) -> ResourceRule:
        """The rule under which `path` may be released. Raises BrokerDenied `rules.*`, AppraisalRefused."""
        rule = self._named(self.resources.get(path), path)
        if rule.phase not in ("any", verified.phase):
            hint = "boot the guest again" if rule.phase == "boot" else "finish the boot"
            raise BrokerDenied("rules.phase", f"{path} is released in phase {rule.phase} alone", hint=hint)
        self._appraise(rule.policy, verified)
        return rule

    def require_certificate(self, verified: VerifiedEvidence) -> CertificateRule:
        """Raises BrokerDenied `rules.none`, AppraisalRefused."""
        rule = self._named(self.certificates, "certificates")
        self._appraise(rule.policy, verified)
        return rule

    def require_lease(self, verified: VerifiedEvidence) -> None:
        """Raises BrokerDenied `rules.*`, AppraisalRefused."""
        rule = self._named(self.lease, "lease")
        if verified.phase != "released":
            raise BrokerDenied("rules.phase", "a lease is for a guest that measured `released`", hint="finish the boot")
        self._appraise(rule.policy, verified)

    @staticmethod
    def _named(rule: R | None, what: str) -> R:
        if rule is None:
            raise BrokerDenied("rules.none", f"no rule names {what}", hint="add a rule at the broker")
        return rule

    def _appraise(self, name: str, verified: VerifiedEvidence) -> None:
        appraise(verified, self.policies[name], phase=verified.phase).require()


def open_ends(rule: ResourceRule) -> tuple[str, ...]:
    """What a rule leaves unlimited, in words: for whoever reviews it."""
    found = ["phase: any, so also to a guest that serves"] if rule.phase == "any" else []
    return (*found, *(f"{n}: unlimited" for n in ("until", "releases", "at_once") if getattr(rule, n) == "unlimited"))


@dataclass(frozen=True, slots=True)
class LoadedRules:
    """Rules, and the digest of their exact text for the audit."""

    rules: Rules
    digest: str  # sha256:<hex>


def load_rules(text: bytes) -> LoadedRules:
    """From YAML. Raises ConfigError `rules.*`, `policy.*`."""
    rules = strict.load_yaml(text, Rules, error=ConfigError, family="rules")
    return LoadedRules(rules, "sha256:" + hashlib.sha256(text).hexdigest())


class RulesFile:
    """The rules as the file has them now. While it is missing, empty or wrong, everything is refused."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._seen: tuple[int, int, int] | None = None
        self._loaded: LoadedRules | ConfigError = ConfigError("rules.file", f"{path} was not read", hint="start again")

    def current(self) -> LoadedRules:
        """Raises ConfigError `rules.*`, `policy.*`."""
        try:
            stat = self._path.stat()
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if seen != self._seen:
                self._loaded, self._seen = self._load(), seen
        except OSError as e:
            self._seen = None
            raise ConfigError("rules.file", f"{self._path}: {e.strerror}", hint="give the rules file") from e
        loaded = self._loaded
        if isinstance(loaded, ConfigError):  # raised again, one error would keep every request that it ever refused
            raise ConfigError(loaded.code, loaded.detail, hint=loaded.hint)
        return loaded

    def _load(self) -> LoadedRules | ConfigError:
        try:
            loaded = load_rules(self._path.read_bytes())
        except AgentError as e:
            log.failure(e)
            return ConfigError(e.code, e.detail, hint=e.hint)
        anchors = loaded.rules.anchors.anchors()
        level = logging.INFO if anchors.vendors else logging.WARNING  # a simulated anchor is said loudly
        log.event("rules.loaded", level=level, digest=loaded.digest, anchors=str(anchors))
        return loaded
