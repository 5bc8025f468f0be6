"""A real broker over TLS on loopback, and a simulated guest that speaks to it with the real client."""

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPSConnection
from pathlib import Path

import yaml

from antechamber.broker import admin, server
from antechamber.broker.decisions import Broker, wall_clock
from antechamber.broker.kbs import Kbs
from antechamber.broker.messages import PREFIX
from antechamber.broker.transport import Transport
from antechamber.simulator.deployment import MODEL_KEY, NAMES
from antechamber.simulator.fleet import KEY, Guest, found_broker, policy, rule
from antechamber.simulator.intel import IntelPki
from antechamber.simulator.knobs import Knobs
from antechamber.simulator.machine import Machine
from antechamber.simulator.nvidia import NvidiaPki


@dataclass
class Rig:
    """A broker's directory, the broker that runs from it, and the vendors' simulated PKIs."""

    directory: Path
    broker: Broker
    url: str
    intel: IntelPki
    nvidia: NvidiaPki

    def guest(self, **knobs: object) -> Guest:
        guest = Guest(Machine(self.intel, self.nvidia, Knobs(**knobs)))  # type: ignore[arg-type]
        guest.measure()
        return guest

    def kbs(self, ca: Path | None = None, timeout_s: float = 10) -> Kbs:
        return Kbs(Transport(self.url, str(ca or self.directory / "broker-ca.pem"), timeout_s))

    def raw(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """An HTTP client that is not ours."""
        context = ssl.create_default_context(cafile=str(self.directory / "broker-ca.pem"))
        connection = HTTPSConnection(self.url.removeprefix("https://"), context=context, timeout=10)
        try:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body or None, sent)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def rewrite(self, **changes: object) -> None:
        """Edit the rules file."""
        path = self.directory / "policy.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))

    def decisions(self) -> list[tuple[str, str]]:
        return [(r.decision, r.code) for r in self.broker.audit.records()]


@dataclass
class Clock:
    """A broker's clock, that a test puts forward."""

    ahead: int = 0

    def __call__(self) -> int:
        return int(time.time()) + self.ahead

    def wait(self, seconds: int) -> None:
        self.ahead += seconds


@contextmanager
def running(directory: Path, clock: Callable[[], int] = wall_clock, session_minutes: int = 5) -> Iterator[Rig]:
    """A broker with a model key and rules for the simulated machine."""
    intel, nvidia = IntelPki(), NvidiaPki()
    resources = {MODEL_KEY: rule("boot"), "default/any/1": rule("any"), "default/missing/1": rule("boot")}
    found_broker(directory, intel, nvidia, resources)
    with (directory / "broker.yaml").open("a") as settings:
        settings.write(f"session_minutes: {session_minutes}\n")
    with serving(directory, intel, nvidia, clock) as rig:
        for path in (MODEL_KEY, "default/any/1", "default/unruled/1"):
            rig.broker.store.put(path, KEY)
        yield rig


@contextmanager
def serving(
    directory: Path, intel: IntelPki, nvidia: NvidiaPki, clock: Callable[[], int] = wall_clock
) -> Iterator[Rig]:
    """The broker of a directory: another run of it, where one was there before."""
    broker, settings = admin.load_broker(directory)
    broker = replace(broker, clock=clock)
    context = server.tls_context(str(directory / settings.tls.certificate), str(directory / settings.tls.key))
    loop, listening = asyncio.new_event_loop(), threading.Event()
    found: list[str] = []

    async def serve() -> None:
        runner, url = await server.start(broker, "127.0.0.1:0", context)
        found.append(url)
        stop = asyncio.Event()
        loop.stop_broker = stop.set  # type: ignore[attr-defined]
        listening.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    listening.wait(10)
    try:
        yield Rig(directory, broker, found[0], intel, nvidia)
    finally:
        loop.call_soon_threadsafe(loop.stop_broker)  # type: ignore[attr-defined]
        thread.join(10)
        loop.close()
        broker.store._database.close()  # a broker's process ends with its descriptors: this one does not


def cookie_of(headers: dict[str, str]) -> str:
    return headers["set-cookie"].partition(";")[0]


def auth_body(tee: str = "tdx", version: str = "0.4.0") -> bytes:
    return json.dumps({"version": version, "tee": tee, "extra-params": {}}).encode()


__all__ = [
    "KEY",
    "MODEL_KEY",
    "NAMES",
    "PREFIX",
    "Clock",
    "Guest",
    "Rig",
    "auth_body",
    "cookie_of",
    "policy",
    "rule",
    "running",
    "serving",
]  # fmt: skip
