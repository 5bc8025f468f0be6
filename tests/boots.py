"""A whole boot in this process: real stages, real broker over TLS, the simulated machine at the ports.

`Around` objects stand where an attacker does: on the host's side of a port, or on the broker's wire.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from brokers import KEY, MODEL_KEY, NAMES, Rig, running

from antechamber.boot.ending import Undo
from antechamber.boot.pipeline import Adapters, Booted, boot
from antechamber.broker.jwe import TeeKey
from antechamber.model import pack
from antechamber.model.manifest import Accept, Golden
from antechamber.ports import Hardware, KeyBroker
from antechamber.secret import Secret
from antechamber.simulator import standin
from antechamber.simulator.deployment import scratch
from antechamber.simulator.knobs import CMDLINE, Knobs
from antechamber.simulator.machine import Machine


class Around:
    """Another object with some of its methods replaced: `Around(device, quote=...)`."""

    def __init__(self, inner: Any, **methods: Callable[..., Any]) -> None:
        self._inner, self._methods = inner, methods

    def __getattr__(self, name: str) -> Any:
        return self._methods.get(name) or getattr(self._inner, name)


@dataclass
class World:
    """One broker, one package, and as many boots as a test likes."""

    root: Path
    rig: Rig
    model_hash: str
    undo: Undo = field(default_factory=Undo)

    @property
    def runtime_dir(self) -> Path:
        return self.root / "run"

    def machine(self, **knobs: object) -> Machine:
        return Machine(self.rig.intel, self.rig.nvidia, replace(Knobs(), **knobs))

    def config(self, **changes: Any) -> Path:
        directory = self.rig.directory
        document: dict[str, Any] = {
            "version": 1,
            "runtime_dir": str(self.runtime_dir),
            "trust": {
                "intel": self.rig.intel.root_pem,
                "nvidia": self.rig.nvidia.root_pem,
                "collateral_signer": (directory / "collateral-signer.b64").read_text().strip(),
                "time_floor": "2026-11-01T00:00:00Z",
            },
            "broker": {"url": self.rig.url, "ca": str(directory / "broker-ca.pem")},
            "guest": {"cmdline": CMDLINE},
            "gpus": {"count": 1},
            "model": {
                "hash": self.model_hash,
                "source": str(self.root / "package"),
                "key": f"kbs:///{MODEL_KEY}",
                "name": "demo",
            },
            "engine": {"kind": "builtin"},
            "gateway": {"listen": "127.0.0.1:0", "names": list(NAMES), "tls_inside_enclave": True},
        }
        path = self.root / "antechamber.yaml"
        path.write_text(yaml.safe_dump(document | changes))
        return path

    def boot(
        self,
        machine: Machine | None = None,
        *,
        hardware: Callable[[Hardware], Hardware] = lambda hw: hw,
        broker: Callable[[KeyBroker], KeyBroker] = lambda b: b,
        config: Path | None = None,
        fresh: bool = True,
    ) -> Booted:
        """Stages 1 to 11; the runtime directory is fresh, as after a power-off."""
        self.undo.run()
        if fresh:
            shutil.rmtree(self.runtime_dir, ignore_errors=True)
        adapters = Adapters(
            hardware(standin.hardware(machine or self.machine())),
            lambda cfg: broker(self.rig.kbs(ca=Path(cfg.ca))),
            TeeKey.generate,
        )
        self.undo = Undo()
        try:
            return boot(str(config or self.config()), adapters, self.undo)
        except BaseException:
            self.undo.run()
            raise

    @property
    def plaintext(self) -> bool:
        return any(p.name.startswith((".model", "model")) for p in self.runtime_dir.glob("*"))


@contextmanager
def world() -> Iterator[World]:
    """A broker that releases the key of a small package to the simulated machine."""
    root = scratch()
    try:
        plain = root / "plain"
        plain.mkdir()
        (plain / "config.json").write_text("{}")
        (plain / "weights.safetensors").write_bytes(bytes(range(256)) * 64)
        golden = Golden("2+2=", 1, (Accept("builtin", "float32", "4"),))
        model_hash = pack.pack(plain, root / "package", Secret(bytearray(KEY)), golden=golden, key_id="1")
        with running(root / "broker") as rig:
            rules = yaml.safe_load((root / "broker" / "policy.yaml").read_text())
            rules["policies"]["demo"]["events"]["model"] = [model_hash]
            (root / "broker" / "policy.yaml").write_text(yaml.safe_dump(rules))
            yield World(root, rig, model_hash)
    finally:
        shutil.rmtree(root, ignore_errors=True)
