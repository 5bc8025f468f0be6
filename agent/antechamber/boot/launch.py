"""Stages 11 and 12: the GPUs made ready, last of all; and the engine, with nothing of ours in its world."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from antechamber import log
from antechamber.boot.preflight import gpu_faults, protected_faults, refuse
from antechamber.config import Config, EngineConfig
from antechamber.engine import catalog, process
from antechamber.engine.catalog import Launch
from antechamber.errors import ConfigError, HardwareUnavailable
from antechamber.model.store import Model
from antechamber.ports import GpuSource


@dataclass(frozen=True, slots=True)
class Plan:
    """How the engine will be started, and the content of the `engine` event."""

    launch: Launch
    event: str


def plan(cfg: Config) -> Plan:
    """From the configuration alone, so that it can be measured and pinned before. Raises ConfigError `engine.*`."""
    launch = catalog.plan(
        kind=cfg.engine.kind,
        image=cfg.engine.image,
        options=cfg.engine.options,
        model=Path(cfg.runtime_dir, "model"),
        name=cfg.model.name,
        socket=Path(cfg.runtime_dir, "engine", "engine.sock"),
    )
    return Plan(launch, catalog.measured(launch))


@dataclass(frozen=True, slots=True)
class Ready:
    """A verified model in memory, and GPUs that may work on it: only with these is an engine started."""

    model: Model
    launch: Launch


@log.stage("ready")
def set_ready(gpus: GpuSource, count: int, model: Model, planned: Plan) -> Ready:
    """Let the GPUs work, after everything else held: it cannot be taken back without a driver reload.

    The gate is passed once more on both sides of it. Raises PlatformUnfit `gpu.*`, HardwareUnavailable `nvml.*`,
    `gpu.not-ready`.
    """
    refuse(gpu_faults(gpus, count)[1])
    gpus.set_ready()
    refuse(protected_faults(gpus, count)[1])
    if not gpus.ready():
        raise HardwareUnavailable("gpu.not-ready", "the ready state did not take", hint="reload the driver: reboot")
    return Ready(model, planned.launch)


@log.stage("launch")
def launch_engine(ready: Ready, engine: EngineConfig) -> process.EngineProcess:
    """Start the engine as our child, for `antechamber run`. Raises EngineFailed, ConfigError `engine.transport`."""
    launch = ready.launch
    if launch.transport != "unix":
        raise ConfigError(
            "engine.transport",
            f"{launch.kind} answers on loopback only, and `run` has no relay to it",
            hint="use an engine with a unix socket: builtin or vllm",
        )
    started = process.start(launch, user=engine.user, network=engine.network)
    log.event("engine.exec", pid=started.pid, network=engine.network)
    return started


def replace(answer: dict[str, Any]) -> NoReturn:
    """Become the engine that the agent handed over, for `antechamber exec`; apart from the agent's network, or not."""
    launch, user, agents = Launch.from_json(answer), str(answer.get("user", "")), answer.get("apart_from")
    apart_from = None if agents is None else int(agents)
    log.event("engine.exec", engine=launch.kind, user=user, network="host" if apart_from is None else "own")
    process.replace(launch, user=user, apart_from=apart_from)
