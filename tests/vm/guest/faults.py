"""Each fault of docs/kernel-abi.md, made to happen on the kernel that runs here, and the code that the agent gave.

Faults are parameters of the test module, or what another process of the guest does at a moment that a wrapped entry
gives: the adapters are the agent's own, and so is every call to the kernel.
"""

import contextlib
import errno
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from antechamber.errors import AgentError, HardwareUnavailable
from antechamber.evidence.tdx import Quote
from antechamber.hardware.measurements import REGISTERS, SysfsMeasurements
from antechamber.hardware.tsm import REPORT_ROOT, ConfigfsTsm, KernelEntry, ReportEntry, kernel_entry

DEADLINE_S = 4.0  # the agent's is 60
PARAMETERS = Path("/sys/module/simtsm/parameters")
CONFIGFS = "/sys/kernel/config"
SIGNER = Path("/run/signer.pid")
HEALTHY = {
    "fail_errno": 0,
    "fail_times": 0,
    "delay_ms": 0,
    "uninterruptible": 0,
    "stale": 0,
    "garbage": 0,
    "blob_len": -1,
    "extend_errno": 0,
    "extend_nothing": 0,
    "extend_twice": 0,
    "read_errno": 0,
}
QUOTE_FAULTS: dict[str, dict[str, int]] = {
    "quote": {},
    "quote-padded": {"blob_len": 8000},
    "quote-slow": {"delay_ms": 1000},
    "quote-busy-twice": {"fail_errno": errno.EBUSY, "fail_times": 2},
    "quote-busy": {"fail_errno": errno.EBUSY},
    "quote-again": {"fail_errno": errno.EAGAIN},
    "quote-timed-out": {"fail_errno": errno.ETIMEDOUT},
    "quote-interrupted": {"fail_errno": errno.EINTR},
    "quote-io": {"fail_errno": errno.EIO},
    "quote-too-big": {"fail_errno": errno.EFBIG},
    "quote-invalid": {"fail_errno": errno.EINVAL},
    "quote-empty": {"blob_len": 0},
    "quote-short": {"blob_len": 600},
    "quote-huge": {"blob_len": 200_000},
    "quote-garbage": {"garbage": 1},
    "quote-stale": {"stale": 1},
    "quote-hangs": {"delay_ms": 600_000},
}
REGISTER_FAULTS: dict[str, dict[str, int]] = {
    "extend": {},
    "extend-io": {"extend_errno": errno.EIO},
    "extend-busy": {"extend_errno": errno.EBUSY},
    "extend-invalid": {"extend_errno": errno.EINVAL},
    "extend-interrupted": {"extend_errno": errno.EINTR},
    "extend-nothing": {"extend_nothing": 1},
    "extend-twice": {"extend_twice": 1},
    "register-io": {"read_errno": errno.EIO},
    "register-interrupted": {"read_errno": errno.EINTR},
}
Attempt = Callable[[], object]
AGENT = ConfigfsTsm(deadline_s=DEADLINE_S)  # one object, as in the agent


class Wrong(Exception):
    """The agent said yes to what is not right."""


def run_all(registers: bool, emit: Callable[[dict[str, object]], None]) -> None:
    """Every fault, each from a healthy state back to one."""

    def say(name: str, attempt: Attempt, **parameters: int) -> None:
        emit(_attempted(name, attempt, parameters))

    for name, parameters in QUOTE_FAULTS.items():
        say(name, quote, **parameters)
    _slow_to_end(say)
    say("quote-race", lambda: quote(_at_outblob(lambda path: KernelEntry(path).write("inblob", bytes(64)))))
    say("not-root", _as_nobody)
    if registers:
        for name, parameters in REGISTER_FAULTS.items():
            say(name, extend, **parameters)
    _entries(say)
    _providers(say, registers)


def _attempted(name: str, attempt: Attempt, parameters: dict[str, int]) -> dict[str, object]:
    _set(parameters)
    begin = time.monotonic()
    try:
        attempt()
        code, detail = "ok", ""
    except AgentError as e:
        code, detail = e.code, e.detail
    except Exception as e:  # noqa: BLE001  # whatever it is, the row shows it
        code, detail = f"{type(e).__name__}", str(e)
    seconds = time.monotonic() - begin
    left = sorted(p.name for p in REPORT_ROOT.glob("antechamber-*"))
    _set({})
    return {"fault": name, "code": code, "detail": detail, "seconds": round(seconds, 1), "left": left}


def _set(parameters: dict[str, int]) -> None:
    for name, value in (HEALTHY | parameters).items():
        if (PARAMETERS / name).exists():  # not while the module is away
            (PARAMETERS / name).write_text(str(value))


# -- the agent's calls


def quote(device: ConfigfsTsm = AGENT) -> None:
    """A quote over fresh REPORTDATA; Wrong if it is over other."""
    report_data = os.urandom(64)
    raw = device.quote(report_data)
    if Quote.parse(raw).body.report_data != report_data:
        raise Wrong("a quote over other REPORTDATA")


def extend() -> None:
    """One extend of RTMR3; Wrong if it did not do that."""
    source, digest = SysfsMeasurements(deadline_s=DEADLINE_S), os.urandom(48)
    before = source.read("rtmr3")
    source.extend_rtmr3(digest)
    if (REGISTERS / "rtmr3:sha384").read_bytes() != hashlib.sha384(before + digest).digest():
        raise Wrong("RTMR3 is not extended")


def _as_nobody() -> None:
    """In a fork: root's rights do not come back."""
    into, out = os.pipe()
    if not (pid := os.fork()):
        os.setgid(65534)
        os.setuid(65534)
        try:
            quote()
            said = ["ok", ""]
        except HardwareUnavailable as e:
            said = [e.code, e.detail]
        os.write(out, json.dumps(said).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    code, detail = json.loads(os.read(into, 4096))
    raise HardwareUnavailable(code, detail, hint="")


# -- faults in time


def _slow_to_end(say: Callable[..., None]) -> None:
    """A host that does not answer, and what it leaves behind; a wait that not even SIGKILL ends."""
    signer = int(SIGNER.read_text())
    os.kill(signer, signal.SIGSTOP)
    say("host-silent", quote)
    say("host-still-silent", quote)
    os.kill(signer, signal.SIGCONT)
    time.sleep(2)
    say("host-back", quote)
    say("quote-stuck", quote, delay_ms=int(1000 * DEADLINE_S) + 5000, uninterruptible=1)
    time.sleep(6)
    say("quote-after-stuck", quote)


@contextlib.contextmanager
def _entry_and(act: Callable[[Path], object], path: Path) -> Iterator[ReportEntry]:
    with kernel_entry(path) as entry:
        yield _Before(entry, lambda: act(path))


def _at_outblob(act: Callable[[Path], object]) -> ConfigfsTsm:
    """On its entry somebody else acts just before `outblob` is read."""
    return ConfigfsTsm(entry=lambda path: _entry_and(act, path), deadline_s=DEADLINE_S)


class _Before:
    def __init__(self, entry: ReportEntry, act: Callable[[], object]) -> None:
        self._entry, self._act = entry, act

    def read(self, attribute: str) -> bytes:
        if attribute == "outblob":
            self._act()
        return self._entry.read(attribute)

    def write(self, attribute: str, data: bytes) -> None:
        self._entry.write(attribute, data)


# -- faults of what is there


def _entries(say: Callable[..., None]) -> None:
    """Entries of others stay; what an agent that is gone left goes."""
    foreign, gone = REPORT_ROOT / "cloud-agent", REPORT_ROOT / "antechamber-4194304-00"
    foreign.mkdir()
    gone.mkdir()
    say("entries-left", lambda: quote(ConfigfsTsm(deadline_s=DEADLINE_S)))  # as an agent that starts
    if not foreign.exists():
        raise Wrong("an entry of others is gone")
    foreign.rmdir()


def _providers(say: Callable[..., None], registers: bool) -> None:
    """Unloaded in the middle, before, and while an entry keeps another from registering; another name; no configfs."""
    say("provider-unloaded", lambda: quote(_at_outblob(lambda _: unload())))
    say("provider-none", quote)
    say("registers-none", lambda: SysfsMeasurements().read("rtmr3"))
    load()
    left = REPORT_ROOT / "antechamber-4194304-01"
    left.mkdir()
    unload()
    if (number := load()) != errno.EBUSY:
        raise Wrong(f"a provider registered over an entry: {number}")
    say("provider-kept-out", lambda: quote(ConfigfsTsm(deadline_s=DEADLINE_S)))
    say("provider-back", lambda: load() or quote())
    unload()
    load("provider=sev_guest")
    say("provider-other", quote)
    unload()
    load()
    subprocess.run(["umount", CONFIGFS], check=True)
    say("configfs-none", quote)
    subprocess.run(["mount", "-t", "configfs", "configfs", CONFIGFS], check=True)
    say("configfs-back", quote)


def load(*parameters: str) -> int:
    """Load the module: 0, or the errno of registering. RTMR3 is fresh."""
    words = [*Path("/vm/td").read_text().split(), *parameters]
    done = subprocess.run(["modprobe", "simtsm", *words], capture_output=True, text=True, check=False)
    if not done.returncode:
        return 0
    return errno.EBUSY if "busy" in done.stderr.lower() else -1


def unload() -> None:
    """Take the module away; the signer lets go of it first."""
    until = time.monotonic() + 10
    os.kill(int(SIGNER.read_text()), signal.SIGUSR1)
    while subprocess.run(["rmmod", "simtsm"], stderr=subprocess.DEVNULL, check=False).returncode:
        if time.monotonic() > until:
            raise Wrong("the module does not unload")
        time.sleep(0.05)
        os.kill(int(SIGNER.read_text()), signal.SIGUSR1)
