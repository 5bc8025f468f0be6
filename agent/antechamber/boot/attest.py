"""Stages 8 and 10: prove the machine to the broker, take what the proof earns, unlock the model."""

import ipaddress
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from antechamber import log
from antechamber.boot.identity import Challenge, Identity
from antechamber.boot.measure import Capped, GpuVerdict, Measured
from antechamber.boot.settings import Settings
from antechamber.errors import AppraisalRefused, BrokerDenied, BrokerUnreachable
from antechamber.evidence import tdx
from antechamber.evidence.composite import CompositeEvidence, report_data
from antechamber.model.store import Model, unlock
from antechamber.ports import HostProbe, KeyBroker, QuoteSource
from antechamber.secret import Secret

MODEL_DIRECTORY = "model"  # in runtime_dir
HANDSHAKES = 3  # at most, in one boot
NOT_YET = "antechamber"  # subject of the request; the broker names the certificate by its own rule

Handshake = tuple[Challenge, GpuVerdict]  # a session, and what the GPUs proved over its nonce


@dataclass(frozen=True, slots=True)
class Released:
    """What the broker gave: the certificate for our TLS key, and the model key."""

    certificate: bytes  # PEM chain, leaf first
    key: Secret


@log.stage("release")
def release(
    settings: Settings,
    quotes: QuoteSource,
    broker: KeyBroker,
    first: Handshake,
    again: Callable[[], Handshake],
    measured: Measured,
    keys: Identity,
) -> Released:
    """Composite Evidence in; first the certificate, then the model key, which spends the session.

    A broker that lost the session has said nothing of this guest: `again` then opens another, at most twice. Evidence
    that is refused is never sent again. Source: KBS protocol 0.4.0, 401 to a GET.
    Raises HardwareUnavailable `tsm.*`, AppraisalRefused `tdx.*`, `gpu.changed`, BrokerUnreachable, BrokerDenied.
    """
    handshake, left = first, HANDSHAKES
    while True:
        left -= 1
        try:
            return _release(settings, quotes, broker, handshake, measured, keys)
        except BrokerUnreachable as e:
            if e.code != "broker.session" or left == 0:
                raise
            log.event("session.lost", level=logging.WARNING, handshakes_left=left)
        handshake = again()
        if handshake[1].event != measured.gpu_event:
            raise AppraisalRefused("gpu.changed", "not the GPUs that this boot measured", hint="boot the guest again")


def _release(
    settings: Settings,
    quotes: QuoteSource,
    broker: KeyBroker,
    handshake: Handshake,
    measured: Measured,
    keys: Identity,
) -> Released:
    asked, verdict = handshake
    bound = report_data(asked.nonce, keys.tee.public_jwk, verdict.additional)
    quote = quotes.quote(bound)
    tdx.require_production(tdx.Quote.parse(quote).body)  # no key is asked for with a TD that its host can read
    evidence = CompositeEvidence(quote, measured.log.cc_eventlog(), verdict.additional)  # its padding too
    broker.attest(asked.nonce, keys.tee.public_jwk, evidence, settings.init_data)
    certificate = certify(broker, keys, settings.config.gateway.names)
    return Released(certificate, keys.tee.open(broker.release(settings.config.model.key)))


def certify(broker: KeyBroker, keys: Identity, names: tuple[str, ...]) -> bytes:
    """The chain for our TLS key. Raises BrokerDenied `broker.certificate` where it is for another key."""
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NOT_YET)]))
        .add_extension(x509.SubjectAlternativeName([_general_name(n) for n in names]), critical=False)
        .sign(keys.tls, hashes.SHA256())
    )
    chain = broker.certify(request.public_bytes(Encoding.DER))
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0].public_key()
    except ValueError as e:
        raise BrokerDenied(
            "broker.certificate", "the answer is no PEM chain", hint="read the broker's audit log"
        ) from e
    same = isinstance(leaf, ec.EllipticCurvePublicKey) and keys.tls_spki == leaf.public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    if not same:
        raise BrokerDenied("broker.certificate", "a certificate for another key", hint="read the broker's audit log")
    return chain


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@log.stage("unlock")
def unlock_model(
    settings: Settings, capped: Capped[Released], host: HostProbe, progress: Callable[[int, int], None]
) -> Model:
    """Decrypt into guest memory and verify MODEL_HASH. On any failure no plaintext stays. Raises ModelCorrupt."""
    cfg = settings.config
    return unlock(
        Path(cfg.model.source),
        capped.released.key,
        model_hash=cfg.model.hash,
        destination=Path(cfg.runtime_dir, MODEL_DIRECTORY),
        in_memory=host.in_memory,
        progress=progress,
    )
