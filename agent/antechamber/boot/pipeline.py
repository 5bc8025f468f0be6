"""The boot, in order. Each stage takes what the one before returns, so the order is proved by types."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from antechamber import log
from antechamber.boot.attest import MODEL_DIRECTORY, release, unlock_model
from antechamber.boot.attestor import Attestor, Public
from antechamber.boot.identity import Identity, challenge, collateral, identity
from antechamber.boot.launch import Ready, plan, set_ready
from antechamber.boot.measure import RuntimeLog, cap, gpus, measure
from antechamber.boot.preflight import Platform, preflight
from antechamber.boot.progress import Progress
from antechamber.boot.settings import Settings, read_config
from antechamber.config import BrokerConfig
from antechamber.engine.catalog import Launch
from antechamber.errors import ConfigError
from antechamber.model.store import Model, erase
from antechamber.ports import Hardware, KeyBroker, TeeKey


@dataclass(frozen=True, slots=True)
class Adapters:
    """What the composition root wires: devices, the broker's client, and the TEE key's kind."""

    hardware: Hardware
    broker: Callable[[BrokerConfig], KeyBroker]
    new_tee_key: Callable[[], TeeKey]


@dataclass(frozen=True, slots=True)
class Booted:
    """A proven guest with its model in memory and its GPUs ready; no engine, no port yet."""

    platform: Platform
    keys: Identity
    certificate: bytes
    ready: Ready
    attestor: Attestor

    @property
    def settings(self) -> Settings:
        return self.platform.settings

    @property
    def model(self) -> Model:
        return self.ready.model

    @property
    def launch(self) -> Launch:
        return self.ready.launch


def boot(path: str, adapters: Adapters, undo: ExitStack) -> Booted:
    """Take a fresh guest to a launchable engine, or refuse. Stages 1 to 11.

    `undo` removes the plaintext when the caller is done, or at any exception, a signal's included.
    """
    hw = adapters.hardware
    unbound = read_config(path)  # 1
    platform = preflight(unbound, hw)  # 2
    settings = platform.settings
    broker = adapters.broker(settings.config.broker)
    clock = collateral(settings, platform, broker)  # 3
    keys = identity(adapters.new_tee_key)  # 4
    asked = challenge(broker, keys, clock)  # 5
    verdict = gpus(settings, platform, hw.gpus, asked, clock)  # 6
    engine = plan(settings.config)
    runtime = RuntimeLog(hw.measurements, Path(_runtime_dir(settings), "eventlog"))
    measured = measure(settings, runtime, engine.event, verdict, keys)  # 7
    released = release(settings, hw.quotes, broker, asked, verdict, measured, keys)  # 8
    undo.callback(released.key.destroy)
    capped = cap(measured, released, keys)  # 9
    undo.callback(erase, Path(settings.config.runtime_dir, MODEL_DIRECTORY))
    model = unlock_model(settings, capped, hw.host, Progress("unlock"))  # 10
    ready = set_ready(hw.gpus, settings.config.gpus.count, model, engine)  # 11
    public = Public(measured, keys.tls_spki, keys.receipt_spki)
    attestor = Attestor(settings, hw, broker, adapters.new_tee_key, public)
    return Booted(platform, keys, released.certificate, ready, attestor)


def _runtime_dir(settings: Settings) -> str:
    path = settings.config.runtime_dir
    try:
        os.makedirs(path, mode=0o750, exist_ok=True)
    except OSError as e:
        raise ConfigError("config.runtime-dir", f"{path}: {e.strerror}", hint="let the agent write there") from e
    log.event("runtime", directory=path)
    return path
