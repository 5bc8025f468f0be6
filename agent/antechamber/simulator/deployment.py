"""One whole deployment on this machine: model, package, broker, policies, guest. For the demo, tests and benchmarks.

Everything is done with the commands that a user has; only the machine under the guest is simulated.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from antechamber.engine.process import Network
from antechamber.errors import AgentError
from antechamber.simulator.capabilities import why_no_network
from antechamber.simulator.knobs import CMDLINE
from antechamber.simulator.linux import die_with_parent

MODEL_KEY = "default/model-key/demo"
NAMES = ("localhost", "127.0.0.1")
GOLDEN = "What is Antechamber?"
MEMORY = Path("/dev/shm")  # the one tmpfs every Linux has; a directory in it is new and 0700
DISK = Path("/var/tmp")
UNLIMITED = {"until": "unlimited", "releases": "unlimited", "at_once": "unlimited"}


def gpu_policy() -> dict[str, Any]:
    """`gpu:` of a policy that the simulated machine, as it comes, meets."""
    return {
        "count": 1,
        "arch": ["HOPPER"],
        "modes": ["spt"],
        "driver_min": "570.00",
        "vbios": "unpinned",
        "measurements": "not-appraised",
        "revocation": "not-appraised",
    }


class CommandFailed(AgentError):
    """A command of the deployment ended otherwise than expected."""


@dataclass(slots=True)
class Deployment:
    """Files under `root`, which must lie on tmpfs; processes that `stop` ends."""

    root: Path
    model_name: str = "demo"
    interval_s: int = 60
    standin: bool = False
    engine_user: str = ""
    engine_network: Network = "own"
    broker_port: int = field(default_factory=lambda: free_port())
    guest_port: int = field(default_factory=lambda: free_port())
    _broker: "subprocess.Popen[bytes] | None" = None
    guest: "subprocess.Popen[bytes] | None" = None

    # -- commands

    def antechamber(self, *argv: str) -> str:
        """Run one command to its end; its stdout. Raises CommandFailed `demo.command`."""
        return self._run([sys.executable, "-m", "antechamber", *argv])

    def simulator(self, *argv: str) -> str:
        return self._run([sys.executable, "-m", "antechamber.simulator", "--state", str(self.state), *argv])

    def _run(self, argv: Sequence[str]) -> str:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CommandFailed(
                "demo.command", f"{' '.join(argv[2:5])} ended with {done.returncode}", hint=done.stderr[-2000:]
            )
        return done.stdout

    # -- places

    @property
    def state(self) -> Path:
        return self.root / "simulator"

    @property
    def broker_dir(self) -> Path:
        return self.root / "broker"

    @property
    def package(self) -> Path:
        return self.root / "package"

    @property
    def runtime_dir(self) -> Path:
        return self.root / "run"

    @property
    def config(self) -> Path:
        return self.root / "antechamber.yaml"

    @property
    def client_policy(self) -> Path:
        return self.root / "policy.yaml"

    @property
    def broker_url(self) -> str:
        return f"https://127.0.0.1:{self.broker_port}"

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.guest_port}"

    @property
    def guest_ca(self) -> Path:
        return self.broker_dir / "guest-ca.pem"

    @property
    def broker_pid(self) -> int:
        """Raises CommandFailed `demo.broker` where none runs."""
        if self._broker is None:
            raise CommandFailed("demo.broker", "no broker runs", hint="start it first")
        return self._broker.pid

    # -- steps, in order

    def make_model(self) -> str:
        """A small model, packed and encrypted; its MODEL_HASH."""
        from antechamber.engine.builtin import demo_model

        plain = self.root / "model"
        demo_model.make(plain)
        return self.antechamber(
            "pack", str(plain), str(self.package), "--new-key", str(self.root / "model.key"), "--golden-prompt", GOLDEN
        ).strip()

    def make_broker(self) -> None:
        """Keys, certificates, and the simulated platform's collateral."""
        self.antechamber("broker", "init", str(self.broker_dir), *(f"--name={n}" for n in NAMES))
        self.simulator("material", str(self.root / "material"))
        target = self.broker_dir / "collateral" / "simulated.json"
        target.write_bytes((self.root / "material" / "collateral.json").read_bytes())

    def write_config(self, model_hash: str) -> None:
        """antechamber.yaml for the guest, and the two policies that pin it."""
        anchors = self._anchors()
        signer = (self.broker_dir / "collateral-signer.b64").read_text().strip()
        config = {
            "version": 1,
            "runtime_dir": str(self.runtime_dir),
            "trust": anchors | {"collateral_signer": signer, "time_floor": "2026-11-01T00:00:00Z"},
            "broker": {"url": self.broker_url, "ca": str(self.broker_dir / "broker-ca.pem")},
            "guest": {"cmdline": CMDLINE},
            "gpus": {"count": 1},
            "model": {
                "hash": model_hash,
                "source": str(self.package),
                "key": f"kbs:///{MODEL_KEY}",
                "name": self.model_name,
            },
            "engine": {"kind": "builtin", "start_timeout_s": 60, "user": self.engine_user}
            | {"network": self.engine_network},
            "gateway": {
                "listen": f"127.0.0.1:{self.guest_port}",
                "names": list(NAMES),
                "tls_inside_enclave": True,
            },
            "watch": {"interval_s": self.interval_s, "grace_s": max(600, self.interval_s)},
        }
        self.config.write_text(dump(config))
        policy = self._policy(anchors, signer)
        rules = {
            "version": 1,
            "anchors": anchors,
            "policies": {"demo": policy},
            "resources": {MODEL_KEY: {"policy": "demo", "phase": "boot"} | UNLIMITED},
            "certificates": {"policy": "demo", "names": list(NAMES)},
            "lease": {"policy": "demo"},
        }
        (self.broker_dir / "policy.yaml").write_text(dump(rules))
        result = {"attestation_result": {"ca": (self.broker_dir / "token-ca.pem").read_text()}}
        self.client_policy.write_text(dump(policy | result))

    def _anchors(self) -> dict[str, str]:
        material = self.root / "material"
        return {n: (material / f"{n}_root.pem").read_text() for n in ("intel", "nvidia")}

    def _policy(self, anchors: dict[str, str], signer: str) -> dict[str, Any]:
        reference = json.loads((self.root / "material" / "reference.json").read_text())
        events = json.loads(self.antechamber("reference", "--json", "--config", str(self.config)))
        return {
            "version": 1,
            "anchors": anchors,
            "collateral": {"signer": signer, "max_age_s": 86400, "max_issue_age_s": 2592000, "min_tcb_eval": 17},
            "tdx": {
                "mr_td": [reference["mr_td"]],
                "rtmr0": [reference["rtmr0"]],
                "rtmr1": [reference["rtmr1"]],
                "rtmr2": [reference["rtmr2"]],
                "mr_config_id": "zero",
                "mr_owner": "zero",
                "mr_owner_config": "zero",
                "mr_seam": "unpinned",
                "td_attributes": [reference["td_attributes"]],
                "xfam": [reference["xfam"]],
                "tcb_status": ["UpToDate"],
                "advisories": [],
            },
            **events,
            "gpu": gpu_policy(),
            "attestation_result": "not-appraised",  # the broker issues it
        }

    def start_broker(self) -> None:
        """The embedded broker, a process of its own, with the model key in it."""
        argv = [sys.executable, "-m", "antechamber", "--log", "json", "broker", "serve", str(self.broker_dir)]
        argv += ["--listen", f"127.0.0.1:{self.broker_port}"]
        with (self.root / "broker.log").open("ab") as log:
            self._broker = subprocess.Popen(argv, stdout=log, stderr=log, preexec_fn=_end_with_us)
        self._await(self.broker_port, self._broker, self.root / "broker.log")
        self.antechamber(
            "broker", "put", str(self.broker_dir), MODEL_KEY, str(self.root / "model.key"), "--url", self.broker_url
        )

    def start_guest(self, *knobs: str, command: str = "run") -> "subprocess.Popen[bytes]":
        """The guest on a fresh simulated machine; returns at once."""
        argv = [sys.executable, "-m", "antechamber.simulator", "--state", str(self.state)]
        argv += [a for knob in knobs for a in ("--knob", knob)]
        argv += ["--standin"] if self.standin else []
        argv += ["run", "--", "--log", "json", command, "--config", str(self.config)]
        with (self.root / "guest.log").open("ab") as log:
            self.guest = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True, preexec_fn=_end_with_us)
        return self.guest

    def await_serving(self, timeout_s: float = 60) -> None:
        """The guest's port is open. Raises CommandFailed with the guest's last refusal."""
        if self.guest is None:
            raise CommandFailed("demo.guest", "no guest was started", hint="start it first")
        self._await(self.guest_port, self.guest, self.root / "guest.log", timeout_s)

    def refusal(self) -> dict[str, Any]:
        """The guest's one ERROR record, once it has ended; {} if it ended well."""
        if self.guest is not None:
            self.guest.wait(timeout=60)
        return last_refusal(self.root / "guest.log")

    def boot_refused(self, *knobs: str) -> dict[str, Any]:
        """Boot on a machine that is wrong in some way, to its end; the refusal."""
        (self.root / "guest.log").unlink(missing_ok=True)
        self.start_guest(*knobs)
        return self.refusal()

    def _await(self, port: int, process: "subprocess.Popen[bytes]", log: Path, timeout_s: float = 30) -> None:
        deadline = time.monotonic() + timeout_s
        while not listening(port):
            if process.poll() is not None:
                seen = last_refusal(log)
                raise CommandFailed(
                    seen.get("code", "demo.ended"), seen.get("detail", tail(log)), hint=seen.get("hint", f"read {log}")
                )
            if time.monotonic() > deadline:
                raise CommandFailed("demo.timeout", f"nothing listens on {port} after {timeout_s} s", hint=tail(log))
            time.sleep(0.05)

    def stop_guest(self) -> int:
        """SIGTERM, and wait: the exit status."""
        if self.guest is None:
            return 0
        if self.guest.poll() is None:
            self.guest.terminate()
        return self.guest.wait(timeout=60)

    def stop(self) -> None:
        """End every process."""
        self.stop_guest()
        if self._broker is not None and self._broker.poll() is None:
            self._broker.terminate()
            self._broker.wait(timeout=30)


def prepared(root: Path, say: Callable[[str], None], **settings: Any) -> Deployment:
    """All steps up to a running broker. Where no network can be made for the engine, its configuration says so."""
    if why := why_no_network():
        say(f"NO NETWORK OF ITS OWN for the engine ({why}): engine.network is host, and it may call out")
        settings = {"engine_network": "host"} | settings
    deployment = Deployment(root, **settings)
    say("making a small model, packing and encrypting it")
    model_hash = deployment.make_model()
    say(f"MODEL_HASH={model_hash}")
    say("making the broker's keys, and the simulated vendors' collateral")
    deployment.make_broker()
    say("writing the guest's configuration and the policies that pin it")
    deployment.write_config(model_hash)
    say("starting the key broker, and giving it the model key")
    deployment.start_broker()
    return deployment


class Ended(Exception):  # a signal, no error
    """SIGTERM, SIGHUP or SIGINT."""


@contextlib.contextmanager
def working_folder(base: Path = MEMORY, *, keep: bool = False) -> Iterator[Path]:
    """`scratch`, removed at the end, however it comes: a signal or a closed terminal raises Ended."""

    def end(_signal: int, _frame: FrameType | None) -> None:
        raise Ended

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):  # a background job inherits SIGINT ignored
        signal.signal(number, end)
    root = scratch(base)
    try:
        yield root
    finally:
        if not keep:
            shutil.rmtree(root, ignore_errors=True)


def scratch(base: Path = MEMORY) -> Path:
    """A new private directory, on tmpfs unless asked otherwise. Raises CommandFailed `demo.tmpfs`."""
    if not os.access(base, os.W_OK):
        raise CommandFailed("demo.tmpfs", f"{base} is not writable", hint="a deployment needs one, a model a tmpfs")
    path = base / f"antechamber-{secrets.token_hex(6)}"
    path.mkdir(mode=0o700)
    return path


class _Plain(yaml.SafeDumper):
    """Aliases are refused by our loader: an expansion bomb needs them."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Plain.add_representer(str, _Plain.represent_text)


def dump(document: dict[str, Any]) -> str:
    """YAML without aliases, PEM texts as blocks."""
    return yaml.dump(document, Dumper=_Plain, sort_keys=False)


def _end_with_us() -> None:
    die_with_parent(signal.SIGTERM)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def listening(port: int) -> bool:
    """Whether a TLS server answers; a bare connection would only show a socket."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as raw, context.wrap_socket(raw):
            return True
    except OSError:
        return False


def tail(log: Path) -> str:
    return log.read_text(errors="replace")[-1500:] if log.exists() else ""


def events(log: Path) -> list[dict[str, Any]]:
    """The JSON records of a log."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def last_refusal(log: Path) -> dict[str, Any]:
    return next((e for e in reversed(events(log)) if e.get("event") == "refused"), {})
