"""Stages 3 to 5: time that the host does not own, fresh keys, and the broker's challenge."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from antechamber import log
from antechamber.boot.preflight import Platform
from antechamber.boot.settings import Settings
from antechamber.evidence.bundle import sha384
from antechamber.evidence.collateral import Collateral, open_collateral
from antechamber.evidence.composite import device_nonce
from antechamber.evidence.policy import signer_key
from antechamber.ports import KeyBroker, TeeKey


@dataclass(frozen=True, slots=True)
class Clock:
    """Broker-signed time carried on by CLOCK_BOOTTIME: the host owns the wall clock."""

    envelope: bytes
    collateral: Collateral
    read_at: float

    def now(self) -> int:
        """Seconds since the epoch."""
        return self.collateral.time + int(time.clock_gettime(time.CLOCK_BOOTTIME) - self.read_at)


@log.stage("collateral")
def collateral(settings: Settings, platform: Platform, broker: KeyBroker) -> Clock:
    """Fetch and verify the signed collateral-and-time bundle over our own nonce.

    Raises BrokerUnreachable, AppraisalRefused `collateral.*`.
    """
    trust = settings.config.trust
    return read_clock(broker, signer_key(trust.collateral_signer), trust.floor())


def read_clock(broker: KeyBroker, signer: bytes, floor: int) -> Clock:
    """One exchange: the time is at least as new as our nonce."""
    nonce, started = os.urandom(32), time.clock_gettime(time.CLOCK_BOOTTIME)
    envelope = broker.collateral(nonce)
    return Clock(envelope, open_collateral(envelope, signer, nonce=nonce, floor=floor), started)


@dataclass(frozen=True, slots=True)
class Identity:
    """Keys that exist only in this boot, in guest memory."""

    tee: TeeKey
    tls: ec.EllipticCurvePrivateKey
    receipt: ed25519.Ed25519PrivateKey
    tls_spki: bytes  # DER
    receipt_spki: bytes  # DER

    @property
    def tls_event(self) -> str:
        return sha384(self.tls_spki)

    @property
    def receipt_event(self) -> str:
        return sha384(self.receipt_spki)


@log.stage("identity")
def identity(new_tee_key: Callable[[], TeeKey]) -> Identity:
    """TEE key (for the broker's JWE), TLS key, receipt key."""
    tls, receipt = ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()
    return Identity(new_tee_key(), tls, receipt, _spki(tls.public_key()), _spki(receipt.public_key()))


def _spki(key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True, slots=True)
class Challenge:
    """The broker's nonce, and the GPU nonce that follows from it and the TEE key."""

    nonce: str
    gpu_nonce: bytes


@log.stage("challenge")
def challenge(broker: KeyBroker, keys: Identity, clock: Clock) -> Challenge:
    """KBS `/auth`. Raises BrokerUnreachable, BrokerDenied."""
    return open_challenge(broker, keys.tee)


def open_challenge(broker: KeyBroker, tee: TeeKey) -> Challenge:
    nonce = broker.challenge()
    return Challenge(nonce, device_nonce(nonce, tee.public_jwk))
