"""The guest's evidence while it serves: a verdict from the broker on an interval, bundles for callers."""

import base64
import hashlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from antechamber import log
from antechamber.boot.identity import Clock, open_challenge, read_clock
from antechamber.boot.measure import GpuVerdict, Measured, prove
from antechamber.boot.preflight import Fault, protected_faults, refuse
from antechamber.boot.settings import Settings
from antechamber.errors import AgentError, AppraisalRefused, BrokerUnreachable, HardwareUnavailable
from antechamber.evidence import tdx
from antechamber.evidence.bundle import Transcript, compose, gpu_nonce, report_data, sha384, transcript_text
from antechamber.evidence.composite import CompositeEvidence
from antechamber.evidence.composite import report_data as broker_report_data
from antechamber.evidence.policy import signer_key
from antechamber.ports import Hardware, KeyBroker, TeeKey

_KEPT_EPOCHS, _KEPT_ASKED = 64, 32  # bundles that stay fetchable by their quote's digest
_PASSING = ("tsm.busy", "tsm.timeout")  # no verdict; every other failure is a bad one


@dataclass(frozen=True, slots=True)
class Public:
    """What of this boot every bundle shows."""

    measured: Measured
    tls_spki: bytes
    receipt_spki: bytes


@dataclass(frozen=True, slots=True)
class Epoch:
    """One good verdict: the broker's token, the signed time, and the bundle over them."""

    started: float  # CLOCK_BOOTTIME
    clock: Clock
    token: str = field(repr=False)
    bundle: bytes = field(repr=False)
    quote: tdx.Quote

    @property
    def quote_sha256(self) -> str:
        return hashlib.sha256(self.quote.raw).hexdigest()


class Turn:
    """One user of the quote device at a time; the watch before callers."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._busy, self._urgent = False, 0

    @contextmanager
    def take(self, *, urgent: bool = False) -> Iterator[None]:
        with self._condition:
            self._urgent += urgent
            self._condition.wait_for(lambda: not self._busy and (urgent or not self._urgent))
            self._urgent -= urgent
            self._busy = True
        try:
            yield
        finally:
            with self._condition:
                self._busy = False
                self._condition.notify_all()


class Attestor:
    """Re-attests, and composes bundles. Thread-safe."""

    def __init__(
        self, settings: Settings, hw: Hardware, broker: KeyBroker, new_tee_key: Callable[[], TeeKey], public: Public
    ) -> None:
        self._settings, self._hw, self._broker, self._new_tee_key = settings, hw, broker, new_tee_key
        self._public = public
        self._turn = Turn()
        self._epoch: Epoch | None = None
        self._failed: AgentError | None = None
        self._stored: tuple[OrderedDict[str, bytes], OrderedDict[str, bytes]] = (OrderedDict(), OrderedDict())
        self._lock = threading.Lock()

    def reattest(self) -> None:
        """A fresh nonce, quote and GPU evidence, appraised by the broker; then the bundle that callers see.

        Raises BrokerUnreachable and HardwareUnavailable `tsm.busy`, `tsm.timeout` where there is no verdict; every
        other refusal is a failed verdict.
        """
        started = time.clock_gettime(time.CLOCK_BOOTTIME)
        try:
            epoch = self._attest(started)
        except (BrokerUnreachable, HardwareUnavailable) as e:
            if not passing(e):
                self._failed = e
            raise
        except AgentError as e:
            self._failed = e
            raise
        with self._lock:
            self._epoch = epoch
        self._store(0, epoch.bundle, epoch.quote)
        log.event("verdict", good=True, quote_sha256=epoch.quote_sha256)

    def _attest(self, started: float) -> Epoch:
        cfg = self._settings.config
        with self._turn.take(urgent=True):
            refuse(self._faults())
            tee = self._new_tee_key()
            asked = open_challenge(self._broker, tee)
            verdict = self._prove(asked.gpu_nonce, self._now())
            bound = broker_report_data(asked.nonce, tee.public_jwk, verdict.additional)
            evidence = CompositeEvidence(
                self._quote(bound)[0], self._public.measured.log.cc_eventlog(), verdict.additional
            )
            token = self._broker.attest(asked.nonce, tee.public_jwk, evidence, self._settings.init_data)
            self._broker.lease()
            clock = read_clock(self._broker, signer_key(cfg.trust.collateral_signer), cfg.trust.floor())
            bundle, served = self._compose(os.urandom(32), clock, token)
            refuse(self._faults())
        return Epoch(started, clock, token, bundle, served)

    def _faults(self) -> list[Fault]:
        faults = protected_faults(self._hw.gpus, self._settings.config.gpus.count)[1]
        if not self._hw.gpus.ready():
            faults.append(Fault("gpu.not-ready", "the GPUs' ready state is gone", "reload the driver: reboot"))
        return faults

    def _prove(self, nonce: bytes, now: int) -> GpuVerdict:
        cfg = self._settings.config
        verdict = prove(self._hw.gpus, cfg.gpus.count, nonce, cfg.trust.anchors(), now)
        if verdict.event != self._public.measured.gpu_event:
            raise AppraisalRefused(
                "gpu.changed", "not the GPUs that this boot measured", hint="a GPU was replaced: reboot"
            )
        return verdict

    def _now(self) -> int:
        return self._public_clock().now()

    def _public_clock(self) -> Clock:
        epoch = self._epoch
        if epoch is not None:
            return epoch.clock
        cfg = self._settings.config
        return read_clock(self._broker, signer_key(cfg.trust.collateral_signer), cfg.trust.floor())

    def _quote(self, bound: bytes) -> tuple[bytes, tdx.Quote]:
        """As the device gave it, padding included; and parsed."""
        raw = self._hw.quotes.quote(bound)
        quote = tdx.Quote.parse(raw)
        tdx.require_production(quote.body)
        return raw, quote

    def _compose(self, nonce: bytes, clock: Clock, token: str) -> tuple[bytes, tdx.Quote]:
        public, cfg = self._public, self._settings.config
        verdict = self._prove(gpu_nonce(nonce, public.tls_spki), clock.now())
        text = transcript_text(
            Transcript(
                format="antechamber-transcript/1",
                nonce=nonce.hex(),
                tls=sha384(public.tls_spki),
                receipt=sha384(public.receipt_spki),
                model=cfg.model.hash,
                engine=public.measured.engine_event,
                gpu_evidence=sha384(verdict.additional.encode()),
                collateral=sha384(clock.envelope),
                attestation_result=sha384(token.encode()),
            )
        )
        quote = self._quote(report_data(text))[1]
        evidence = CompositeEvidence(quote.raw, public.measured.log.cc_eventlog(), verdict.additional)
        bundle = compose(
            text=text,
            evidence=evidence,
            collateral=clock.envelope,
            token=token,
            tls_spki=public.tls_spki,
            receipt_spki=public.receipt_spki,
        )
        return bundle, quote

    def bundle(self, nonce: bytes) -> tuple[bytes, str]:
        """A bundle over a caller's nonce (16 to 64 bytes) and its quote's SHA-256. Raises HardwareUnavailable, ..."""
        with self._turn.take():  # the verdict is read in our turn: one that failed before us refuses us
            if (epoch := self._epoch) is None:
                raise HardwareUnavailable("bundle.none", "no verdict yet", hint="ask again when the guest serves")
            self._require_no_failure()
            refuse(self._faults())
            text, quote = self._compose(nonce, epoch.clock, epoch.token)
            refuse(self._faults())
        return text, self._store(1, text, quote)

    def _require_no_failure(self) -> None:
        if self._failed is not None:
            raise AppraisalRefused("bundle.refused", "the last verdict failed", hint="this guest is ending")

    def _store(self, which: int, bundle: bytes, quote: tdx.Quote) -> str:
        digest = hashlib.sha256(quote.raw).hexdigest()
        with self._lock:
            self._stored[which][digest] = bundle
            while len(self._stored[which]) > (_KEPT_EPOCHS, _KEPT_ASKED)[which]:
                self._stored[which].popitem(last=False)
        return digest

    def stored(self, digest: str) -> bytes | None:
        """The bundle whose quote has this SHA-256, if it is still kept."""
        with self._lock:
            return self._stored[0].get(digest) or self._stored[1].get(digest)

    def age_s(self) -> float | None:
        """Seconds since the evidence of the last good verdict was asked for."""
        epoch = self._epoch
        return None if epoch is None else time.clock_gettime(time.CLOCK_BOOTTIME) - epoch.started

    def verdict(self) -> dict[str, object]:
        """What the gateway asks per call: `good`, `age_s`, the epoch's quote, and the short form."""
        epoch, age = self._epoch, self.age_s()
        if epoch is None or age is None:
            return {"ok": True, "good": False, "age_s": 0.0, "quote": "", "quote_sha256": "", "short": {}}
        good = self._failed is None and age <= self._settings.config.watch.grace_s
        body = epoch.quote.body
        short = {
            "tdx_version": "1.0" if body.tee_tcb_svn2 is None else "1.5",
            "mr_td": body.mr_td.hex(),
            "measurement_valid": good,
            "appraised_by": "the broker's attestation_result; check it, not this boolean",
            "appraised_at": epoch.clock.collateral.time,
            "model": self._settings.config.model.hash,
            "quote_sha256": epoch.quote_sha256,
            "attestation_result": epoch.token,
            "simulated": not self._settings.config.trust.anchors().vendors,
        }
        quote = base64.b64encode(epoch.quote.raw).decode()
        return {
            "ok": True, "good": good, "age_s": age, "quote": quote, "quote_sha256": epoch.quote_sha256, "short": short,
        }  # fmt: skip


def passing(error: AgentError) -> bool:
    """Whether an error only means that there is no verdict now."""
    return isinstance(error, BrokerUnreachable) or error.code in _PASSING
