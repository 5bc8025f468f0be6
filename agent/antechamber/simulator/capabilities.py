"""What this host lets an ordinary process do: found out by doing it, not by looking."""

import ctypes
import errno
import importlib.util
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from antechamber.engine import confined
from antechamber.simulator import linux

_STUB = Path(__file__).with_name("nvml_stub.c")
LIBRARY = "libnvidia-ml.so.1"
_FULL = "user.max_user_namespaces is reached"  # the kernel says ENOSPC


@dataclass(frozen=True, slots=True)
class Capabilities:
    """`reasons` says why not, by the name of the field."""

    userns: bool  # a mount namespace with mounts of our own, through a user namespace if it must be
    fuse: bool
    cc: bool
    reasons: dict[str, str]


def capabilities(libraries: Path | None = None) -> Capabilities:
    """Try everything once. Leaves the compiled NVML stub in `libraries` where there is a compiler."""
    if libraries is None:
        with tempfile.TemporaryDirectory() as scratch:
            return capabilities(Path(scratch))
    reasons = {
        name: reason
        for name, reason in (
            ("userns", _in_child(_mount_something)),
            ("fuse", _in_child(_mount_fuse)),
            ("cc", build_stub(libraries)),
        )
        if reason
    }
    return Capabilities("userns" not in reasons, "fuse" not in reasons, "cc" not in reasons, reasons)


def build_stub(libraries: Path) -> str:
    """Compile and load the NVML stub. Why it cannot be done, or "" when it is."""
    libraries.mkdir(mode=0o700, exist_ok=True)
    built = libraries / LIBRARY
    part = libraries / f".{LIBRARY}.{os.getpid()}"
    command = ["cc", "-O1", "-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}", "-o", str(part), str(_STUB)]
    try:
        if not built.exists() or built.stat().st_mtime <= _STUB.stat().st_mtime:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
            part.replace(built)
        ctypes.CDLL(str(built))
    except FileNotFoundError:
        return "no C compiler: cc is not installed"
    except subprocess.CalledProcessError as e:
        return f"cc: {(e.stderr.strip() or 'failed').splitlines()[0]}"
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"the NVML stub does not load: {e}"
    return ""


def _mount_something() -> str:
    linux.enter_namespace()
    linux.mount("tmpfs", "/run", "tmpfs", linux.NOSUID | linux.NODEV)
    linux.bind("/run", "/sys/kernel")  # a container may hold /sys or /proc back
    linux.bind("/dev/null", "/proc/cmdline")
    return ""


def _mount_fuse() -> str:
    """Mount without serving: the kernel waits for an answer only at the first use."""
    if importlib.util.find_spec("mfusepy") is None:
        return "mfusepy is not installed"
    try:
        import mfusepy  # noqa: F401 - loading it looks for libfuse
    except OSError as e:
        return f"libfuse is not installed ({e})"
    linux.enter_namespace()
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    linux.mount("probe", "/run", "fuse", linux.NOSUID | linux.NODEV, options)
    return ""


def why_no_network() -> str:
    """Why an engine cannot have a network namespace of its own here; "" where it can."""
    return _in_child(_enter_network)


def _enter_network() -> str:
    confined.enter(None, confined.network())
    return ""


def _in_child(attempt: Callable[[], str]) -> str:
    """What `attempt` returns, or the OSError it raises, in a child whose namespaces end with it."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        _try(attempt, into)
    os.close(into)
    with open(out, "rb") as reader:
        said = reader.read()
    os.waitpid(pid, 0)
    return said[1:].decode() if said[:1] == b"=" else "the trial ended without an answer"


def _try(attempt: Callable[[], str], into: int) -> None:
    """In the child: never returns."""
    try:
        try:
            said = attempt()
        except OSError as e:
            said = f"{e.filename or 'call'}: {_FULL if e.errno == errno.ENOSPC else e.strerror}"
        os.write(into, b"=" + said.encode())
    finally:
        os._exit(0)
