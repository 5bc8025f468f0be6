"""The boot, in order. Each stage takes what the one before returns, so the order is proved by types."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from antechamber import log
from antechamber.boot.attest import MODEL_DIRECTORY, Handshake, release, unlock_model
from antechamber.boot.attestor import Attestor, Public
from antechamber.boot.ending import Undo
from antechamber.boot.identity import Identity, challenge, collateral, identity
from antechamber.boot.launch import Ready, plan, set_ready
from antechamber.boot.measure import RuntimeLog, cap, gpus, measure
from antechamber.boot.preflight import Platform, preflight
from antechamber.boot.progress import Progress
from antechamber.boot.settings import Settings, read_config
from antechamber.config import BrokerConfig
from antechamber.engine.catalog import Launch
from antechamber.engine.process import group_of
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


def boot(path: str, adapters: Adapters, undo: Undo) -> Booted:
    """Take a fresh guest to a launchable engine, or refuse. Stages 1 to 11.

    `undo` removes the plaintext when the caller is done, however that comes.
    """
    hw = adapters.hardware
    unbound = read_config(path)  # 1
    platform = preflight(unbound, hw)  # 2
    settings = platform.settings
    broker = adapters.broker(settings.config.broker)
    clock = collateral(settings, platform, broker)  # 3
    keys = identity(adapters.new_tee_key)  # 4

    def handshake() -> Handshake:
        asked = challenge(broker, keys, clock)  # 5
        return asked, gpus(settings, platform, hw.gpus, asked, clock)  # 6

    first = handshake()
    engine = plan(settings.config)
    runtime_dir = _runtime_dir(settings)
    undo.push("event log", lambda: (runtime_dir / "eventlog").unlink(missing_ok=True))
    runtime = RuntimeLog(hw.measurements, runtime_dir / "eventlog")
    measured = measure(settings, runtime, engine.event, first[1], keys)  # 7
    released = release(settings, hw.quotes, broker, first, handshake, measured, keys)  # 8
    undo.push("model key", released.key.destroy)
    capped = cap(measured, released, keys)  # 9
    undo.push("report", lambda: _report(runtime_dir / MODEL_DIRECTORY))
    undo.push("plaintext", lambda: erase(runtime_dir / MODEL_DIRECTORY))
    model = unlock_model(settings, capped, hw.host, Progress("unlock"))  # 10
    ready = set_ready(hw.gpus, settings.config.gpus.count, model, engine)  # 11
    public = Public(measured, keys.tls_spki, keys.receipt_spki)
    attestor = Attestor(settings, hw, broker, adapters.new_tee_key, public)
    return Booted(platform, keys, released.certificate, ready, attestor)


def _report(plaintext: Path) -> None:
    if plaintext.exists():
        log.event("plaintext.left", level=logging.CRITICAL, path=str(plaintext), do="power the guest off")
    else:
        log.event("wiped", path=str(plaintext))


def _runtime_dir(settings: Settings) -> Path:
    """Ours alone to write; where the engine has a user of its own, open to its group. Raises ConfigError."""
    path, user = Path(settings.config.runtime_dir), settings.config.engine.user
    try:
        path.mkdir(mode=0o750, parents=True, exist_ok=True)
        seen = path.stat()
        if seen.st_uid != os.geteuid() or seen.st_mode & 0o022:
            detail = f"{path} is uid {seen.st_uid}'s, mode {seen.st_mode & 0o7777:04o}"
            raise ConfigError("config.runtime-dir", detail, hint="give the agent a folder that only it can write")
        if user:
            os.chown(path, -1, group_of(user))
            path.chmod(0o2750)  # what is made in it is the group's too
    except OSError as e:
        raise ConfigError("config.runtime-dir", f"{path}: {e.strerror}", hint="let the agent write there") from e
    log.event("runtime", directory=str(path))
    return path
