"""Stages 13 and 14: admit the engine, open the port, and stay proven; whatever ends, everything ends."""

import os
import queue
import shutil
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from antechamber import log
from antechamber.boot.attestor import passing
from antechamber.boot.ending import Stop, Undo, ending
from antechamber.boot.handover import AgentServer, Handover, seal_key
from antechamber.boot.launch import launch_engine
from antechamber.boot.notify import notify
from antechamber.boot.pipeline import Adapters, Booted, boot
from antechamber.engine import confined, probe
from antechamber.engine.catalog import Launch
from antechamber.engine.orphans import adopt_orphans, end_descendants
from antechamber.engine.process import EngineProcess, start
from antechamber.errors import AgentError, AppraisalRefused, EngineFailed, PlatformUnfit

_TICK_S = 0.2
_DRAIN_S = 12.0  # the gateway lets running answers end for 10 s
_PARTS_S = 120  # how long systemd may take to start the parts that we hand over to


@dataclass(slots=True)
class Serving:
    """A booted guest, its socket, and in `run` its children."""

    booted: Booted
    handover: Handover
    engine: EngineProcess | None = None
    gateway: EngineProcess | None = None


def serve_children(config: str, adapters: Adapters) -> int:
    """`antechamber run`: engine and gateway are our children."""
    undo = Undo()
    with ending(undo) as stop:
        guest = hand_over(boot(config, adapters, undo), undo)
        cfg = guest.booted.settings.config
        refuse_production(guest.booted)
        guest.handover.only_pid = 0
        adopt_orphans()
        undo.push("descendants", end_descendants)
        guest.engine = launch_engine(guest.booted.ready, cfg.engine)
        undo.push("engine", lambda: _stop(guest.engine, undo))
        admitted = admit(guest)
        guest.gateway = start(_gateway_launch(guest), network="host")
        undo.push("gateway", lambda: _stop(guest.gateway, undo))
        guest.handover.expect(guest.gateway.pid)
        watch(guest, opened(guest, admitted), stop)
    return 0  # a signal asked us to stop


def serve_handover(config: str, adapters: Adapters) -> int:
    """`antechamber boot`: systemd starts `antechamber exec` and `antechamber gateway`, which ask us."""
    undo = Undo()
    with ending(undo) as stop:
        guest = hand_over(boot(config, adapters, undo), undo)
        notify("READY=1\nSTATUS=proven; the engine may start")
        admitted = admit(guest)
        guest.handover.admitted.set()
        watch(guest, opened(guest, admitted), stop)
    return 0  # a signal asked us to stop


def refuse_production(booted: Booted) -> None:
    """Under one user nothing keeps the engine from the agent: that is for a laptop, a container or CI.

    Raises PlatformUnfit `host.run`.
    """
    if booted.platform.facts.image_variant == "prod":
        raise PlatformUnfit(
            "host.run", "`antechamber run` on a production image", hint="use the units: antechamber boot"
        )
    if not booted.settings.config.engine.user:
        log.event("engine.unseparated", level=30, meaning="the engine runs as the agent's own user")


def hand_over(booted: Booted, undo: Undo) -> Serving:
    """Open the agent's socket. What is undone last first: the port, the engine, the socket, the plaintext."""
    runtime, handover = _runtime(booted), _handover(booted)
    undo.push("engine's folder", lambda: shutil.rmtree(runtime / "engine", ignore_errors=True))
    undo.push("socket's path", lambda: (runtime / "agent.sock").unlink(missing_ok=True))
    server = AgentServer(runtime / "agent.sock", handover, booted.attestor)
    undo.push("socket", server.end)
    return Serving(booted, handover)


def _stop(part: EngineProcess | None, undo: Undo) -> None:
    """After a failure the port is gone at once."""
    if part is not None:
        part.stop(grace_s=_DRAIN_S if undo.orderly else 0.0)


def _runtime(booted: Booted) -> Path:
    return Path(booted.settings.config.runtime_dir)


def _handover(booted: Booted) -> Handover:
    cfg, launch = booted.settings.config, booted.launch
    gateway = {
        "listen": cfg.gateway.listen,
        "certificate": booted.certificate.decode(),
        "model": cfg.model.name,
        "upstream": launch.socket,
        "max_body_bytes": cfg.gateway.max_body_bytes,
        "max_connections": cfg.gateway.max_connections,
        "verdict_age_s": cfg.gateway.verdict_age_s,
        "nonces_per_minute": cfg.gateway.nonces_per_minute,
        "client_share": cfg.gateway.client_share,
    }
    listening = threading.Event()

    def status() -> dict[str, object]:
        verdict, age = booted.attestor.verdict(), booted.attestor.age_s()
        return {
            "ok": True,
            "state": "serving" if listening.is_set() else "starting",
            "verdict": "good" if verdict["good"] else "none",
            "verdict_age_s": -1 if age is None else round(age, 1),
            "quote_sha256": verdict["quote_sha256"],
            "model": cfg.model.hash,
            "engine": cfg.engine.kind,
            "listen": cfg.gateway.listen,
            "anchors": str(cfg.trust.anchors()),
        }

    engine = launch.to_json() | {"user": cfg.engine.user}
    engine["apart_from"] = confined.network() if cfg.engine.network == "own" else None
    return Handover(engine, gateway, seal_key(booted.keys), status, listening=listening)


def _gateway_launch(guest: Serving) -> Launch:
    runtime = guest.booted.settings.config.runtime_dir
    argv = (sys.executable, "-I", "-m", "antechamber", "gateway", "--socket", os.path.join(runtime, "agent.sock"))
    env = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    return Launch(kind="gateway", image="", argv=argv, env=env, cwd="/", socket="", transport="unix")


@dataclass(frozen=True, slots=True)
class Admitted:
    """An engine that gave the golden answer, in a guest with a fresh verdict: only then is a port opened."""


@dataclass(frozen=True, slots=True)
class Open:
    """A port that answers, and must be watched."""


@log.stage("admit")
def admit(guest: Serving) -> Admitted:
    """The engine answers the golden prompt as sealed, and the broker appraises the guest once more.

    Raises EngineFailed `engine.*`, AppraisalRefused, BrokerDenied.
    """
    cfg, golden = guest.booted.settings.config, guest.booted.model.golden
    socket = Path(guest.booted.launch.socket)
    probe.await_ready(socket, lambda: guest.engine is None or guest.engine.alive, cfg.engine.start_timeout_s)
    text = probe.golden_text(socket, cfg.model.name, golden.prompt, golden.max_tokens)
    sealed = [a.text for a in golden.accept if (a.engine, a.precision) == (cfg.engine.kind, cfg.engine.precision)]
    probe.require_golden(sealed, text)
    guest.booted.attestor.reattest()
    return Admitted()


@log.stage("serve")
def opened(guest: Serving, admitted: Admitted) -> Open:
    """The port is open. Raises EngineFailed `gateway.timeout`, `gateway.died`."""
    deadline = time.monotonic() + _PARTS_S
    while not guest.handover.listening.wait(_TICK_S):
        if guest.gateway is not None and not guest.gateway.alive:
            raise EngineFailed("gateway.died", "the gateway ended before it listened", hint="read its last log lines")
        if time.monotonic() > deadline:
            raise EngineFailed("gateway.timeout", f"no port after {_PARTS_S} s", hint="read the gateway's log")
    log.event("serving", listen=guest.booted.settings.config.gateway.listen)
    notify("READY=1\nSTATUS=serving")
    return Open()


@log.stage("watch")
def watch(guest: Serving, port: Open, stop: Stop) -> NoReturn:
    """Stay proven until something fails; then raise it, and `serving` wipes. Never returns otherwise.

    The age of the last good verdict is judged here, so a watch that hangs or dies ends the guest too.
    Raises whatever refused, AppraisalRefused `watch.*`, EngineFailed `engine.died`, `gateway.died`.
    """
    failures: queue.Queue[AgentError] = queue.Queue()
    watcher = threading.Thread(target=_reattest_for_ever, args=(guest, failures), name="watch", daemon=True)
    watcher.start()
    while True:
        try:
            raise failures.get(timeout=_TICK_S)
        except queue.Empty:
            pass
        stop.require_none()
        require_fresh(guest)
        if not watcher.is_alive() and failures.empty():
            raise AppraisalRefused("watch.died", "the watch ended without a verdict", hint="report its traceback")
        if guest.engine is not None:
            guest.engine.require_alive()
        if guest.gateway is not None and not guest.gateway.alive:
            raise EngineFailed("gateway.died", "the gateway ended", hint="read its last log lines")


def require_fresh(guest: Serving) -> None:
    """Raises AppraisalRefused `watch.grace`."""
    age, grace_s = guest.booted.attestor.age_s(), guest.booted.settings.config.watch.grace_s
    if age is None or age > grace_s:
        raise AppraisalRefused(
            "watch.grace",
            f"no good verdict for {age or 0:.0f} s, grace is {grace_s}",
            hint="bring the broker back in time",
        )


def _reattest_for_ever(guest: Serving, failures: "queue.Queue[AgentError]") -> None:
    attestor, interval_s = guest.booted.attestor, guest.booted.settings.config.watch.interval_s
    while True:
        time.sleep(interval_s)
        try:
            attestor.reattest()
        except AgentError as e:
            if not passing(e):
                failures.put(e)
                return
            log.event("verdict.none", level=30, code=e.code, detail=e.detail)
