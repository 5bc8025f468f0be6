"""Stage 1, config: what the verity root says; and, once the machine is fit, what init-data may add to it."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from antechamber import config, log
from antechamber.config import Config
from antechamber.errors import ConfigError
from antechamber.evidence import initdata
from antechamber.ports import MeasurementSource

_MAX_INIT_DATA = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Unbound:
    """The verity root's configuration; what init-data may add is not believed yet."""

    config: Config
    config_event: str  # content of the `config` event


@dataclass(frozen=True, slots=True)
class Settings:
    """Configuration whose every value is measured: by the verity root, or by MRCONFIGID."""

    config: Config
    config_event: str
    mr_config_id: bytes
    init_data: str | None  # the exact text, for the broker


@log.stage("config")
def read_config(path: str) -> Unbound:
    """antechamber.yaml, strictly. Raises ConfigError `config.*`."""
    cfg, raw = config.load(path)
    anchors = cfg.trust.anchors()
    if not anchors.vendors:
        log.event("anchor.simulated", level=30, anchors=str(anchors), meaning="evidence proves nothing about hardware")
    if cfg.engine.network == "host":
        log.event("engine.network", level=30, network="host", meaning="the engine may call out to anyone")
    return Unbound(cfg, config.measured(raw))


def bind_init_data(unbound: Unbound, measurements: MeasurementSource) -> Settings:
    """Add init-data, if the configuration names it and MRCONFIGID is its digest; on a machine that preflight found fit.

    Raises ConfigError `config.*`, AppraisalRefused `initdata.*`, HardwareUnavailable `rtmr.*`.
    """
    cfg, mr_config_id = unbound.config, measurements.read("mrconfigid")
    text = None
    if cfg.init_data is not None:
        raw_init_data = _read(cfg.init_data.file)
        cfg = merge(cfg, initdata.require_bound(raw_init_data, mr_config_id))
        text = raw_init_data.decode()  # parsed as TOML above, so it is UTF-8
    return Settings(cfg, unbound.config_event, mr_config_id, text)


def _read(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(_MAX_INIT_DATA + 1)
    except OSError as e:
        raise ConfigError("config.init-data", f"{path}: {e.strerror}", hint="attach init-data, or leave it out") from e


def merge(cfg: Config, given: initdata.InitData) -> Config:
    """`cfg` with the allow-listed settings of init-data; the strict types judge them like the file's own."""
    model = {"hash": given.model_hash, "source": given.model_source, "key": given.model_key, "name": given.model_name}
    changed = {k: v for k, v in model.items() if v is not None}
    broker = cfg.broker if given.broker_url is None else dataclasses.replace(cfg.broker, url=given.broker_url)
    names = cfg.gateway if given.names is None else dataclasses.replace(cfg.gateway, names=given.names)
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, **changed), broker=broker, gateway=names)
