"""Stage 1, config: what the verity root says, and what init-data may add to it."""

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
class Settings:
    """Configuration whose every value is measured: by the verity root, or by MRCONFIGID."""

    config: Config
    config_event: str  # content of the `config` event
    mr_config_id: bytes
    init_data: str | None  # the exact text, for the broker


@log.stage("config")
def settle(path: str, measurements: MeasurementSource) -> Settings:
    """Read antechamber.yaml, and init-data if the file names it and MRCONFIGID is its digest.

    Raises ConfigError `config.*`, AppraisalRefused `initdata.*`.
    """
    cfg, raw = config.load(path)
    mr_config_id = measurements.read("mrconfigid")
    text = None
    if cfg.init_data is not None:
        raw_init_data = _read(cfg.init_data.file)
        cfg = merge(cfg, initdata.require_bound(raw_init_data, mr_config_id))
        text = raw_init_data.decode()  # parsed as TOML above, so it is UTF-8
    anchors = cfg.trust.anchors()
    if not anchors.vendors:
        log.event("anchor.simulated", level=30, anchors=str(anchors), meaning="evidence proves nothing about hardware")
    return Settings(cfg, config.measured(raw), mr_config_id, text)


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
