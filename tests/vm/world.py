"""A broker on this machine's loopback, and what the guest's image would carry to reach it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from vm.machine import BROKER, CMDLINE, PORT

from antechamber.config import measured
from antechamber.engine import catalog
from antechamber.simulator import ccel
from antechamber.simulator.deployment import NAMES, Deployment, dump
from antechamber.simulator.machine import MR_TD

RUNTIME = "/run/antechamber"


@dataclass(slots=True)
class VmDeployment(Deployment):
    """A deployment whose guest is a micro VM."""

    def make_broker(self) -> None:
        self.antechamber("broker", "init", str(self.broker_dir), *(f"--name={n}" for n in (BROKER, *NAMES)))
        self.simulator("material", str(self.root / "material"))
        target = self.broker_dir / "collateral" / "simulated.json"
        target.write_bytes((self.root / "material" / "collateral.json").read_bytes())

    def write_config(self, model_hash: str) -> None:
        """As on this machine; then what is other in the guest, and the events that follow from it."""
        Deployment.write_config(self, model_hash)
        document = yaml.safe_load(self.config.read_text())
        document["runtime_dir"] = RUNTIME
        document["broker"] = {"url": f"https://{BROKER}:{PORT}", "ca": "/vm/broker-ca.pem", "timeout_s": 60}
        document["guest"] = {"cmdline": CMDLINE}
        document["model"]["source"] = "/vm/package"
        document["gateway"]["listen"] = "127.0.0.1:8443"
        self.config.write_text(dump(document))
        path = self.broker_dir / "policy.yaml"
        rules = yaml.safe_load(path.read_text())
        rules["policies"]["demo"]["events"] |= self._guest_events()
        path.write_text(dump(rules))

    def _guest_events(self) -> dict[str, list[str]]:
        launch = catalog.plan(
            kind="builtin",
            image="",
            options=(),
            model=Path(RUNTIME, "model"),
            name=self.model_name,
            socket=Path(RUNTIME, "engine", "engine.sock"),
            python="/usr/bin/python3",
        )
        return {"config": [measured(self.config.read_bytes())], "engine": [catalog.measured(launch)]}

    def files(self) -> dict[str, tuple[int, bytes]]:
        """Mode and content by absolute path in the guest."""
        rtmr = dict(zip(("rtmr0", "rtmr1", "rtmr2"), ccel.registers(), strict=True))
        td = " ".join(f"{name}={value.hex()}" for name, value in ({"mrtd": MR_TD} | rtmr).items())
        found = {
            "/vm/td": (0o600, td.encode()),
            "/vm/antechamber.yaml": (0o600, self.config.read_bytes()),
            "/vm/broker-ca.pem": (0o600, (self.broker_dir / "broker-ca.pem").read_bytes()),
            "/vm/simulator/vendors.json": (0o600, (self.state / "vendors.json").read_bytes()),
        }
        for path in sorted(self.package.rglob("*")):
            if path.is_file():
                found[f"/vm/package/{path.relative_to(self.package)}"] = (0o600, path.read_bytes())
        return found

    def decisions(self) -> list[dict[str, Any]]:
        """The broker's audit log, oldest first."""
        return [
            json.loads(line)
            for line in self.antechamber("broker", "audit", str(self.broker_dir), "--json").splitlines()
        ]
