"""Start an engine with nothing of ours in its world, watch it, stop it.

The engine must not outlive the agent. Under systemd the units see to that. In `antechamber run` the engine is started
through setpriv(1) --pdeathsig, where that exists: prctl(2) in a child of a threaded process is unsafe in Python. The
kernel ties that signal to the thread that started the engine, so it is asked for in the main thread only. An agent
killed in the milliseconds before setpriv has asked leaves the engine behind.
"""

import os
import pwd
import select
import shutil
import signal
import stat
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

from antechamber.engine import confined
from antechamber.engine.catalog import Launch
from antechamber.errors import EngineFailed

_UMASK = 0o007  # the socket is for the engine's user and group
_TICK_S = 0.05
_REAP_S = 5.0  # after SIGKILL
_STDERR = 2
_SYSTEM = "/usr/bin:/bin"
_CONFINED_S = 20.0  # to enter a namespace, and to become the engine

Network = Literal["own", "host"]


@dataclass(slots=True)
class EngineProcess:
    """A started engine, leader of its own session and process group. Not reaped before `stop`."""

    launch: Launch
    _child: "subprocess.Popen[bytes]" = field(repr=False)
    _stopped: bool = False

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def alive(self) -> bool:
        return self.exit_status is None

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        if self._child.returncode is not None:
            return self._child.returncode
        # WNOWAIT leaves it a zombie, so that its process group cannot become somebody else's before we kill it
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def require_alive(self) -> None:
        """Raises EngineFailed `engine.died`."""
        if (status := self.exit_status) is not None:
            how = f"exit status {status}" if status >= 0 else f"signal {-status}"
            raise EngineFailed("engine.died", f"{self.launch.kind} ended: {how}", hint="read its last log lines")

    def watch(self, timeout_s: float) -> None:
        """Return after `timeout_s` of life. Raises EngineFailed `engine.died`."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.require_alive()
            if (left := deadline - time.monotonic()) <= 0:
                return
            time.sleep(min(_TICK_S, left))

    def stop(self, grace_s: float = 10.0) -> None:
        """SIGTERM, `grace_s` to end, SIGKILL for whatever is left of its process group. Safe to repeat.

        Raises EngineFailed `engine.stuck`, `engine.start`.
        """
        if self._stopped:
            return
        self._stopped = True
        deadline = time.monotonic() + grace_s
        if self.alive:
            self._child.send_signal(signal.SIGTERM)
        while self.alive and time.monotonic() < deadline:
            time.sleep(_TICK_S)
        os.killpg(self.pid, signal.SIGKILL)  # the leader is at least a zombie: the group is there
        try:
            self._child.wait(timeout=_REAP_S)
        except subprocess.TimeoutExpired as e:  # in the driver, uninterruptible: nothing else may wait for it
            raise EngineFailed("engine.stuck", f"{self.launch.kind} outlives SIGKILL", hint="power off") from e
        _unlink_socket(self.launch.socket)


def start(launch: Launch, *, user: str = "", network: Network = "own") -> EngineProcess:
    """Start it as `user` ("": as we are), its output on our stderr, in a network of its own unless that is the host's.

    Raises EngineFailed `engine.start`, `engine.network`.
    """
    _unlink_socket(launch.socket)  # an engine that was killed leaves its socket, and the next one fails on it
    _make_home(launch, user)
    dying = _dying_with_us()
    argv = (*dying, *_resolved(launch))
    if network == "host":
        return _spawn(launch, argv, user=user)
    out, into = os.pipe()
    try:
        # twice: a change of user, or a user namespace, takes back what was asked for before
        engine = _spawn(launch, (*dying, *confined.command(into, _identity(user)), *argv), report=into)
    finally:
        os.close(into)
        said = _heard(out)
    if said is not None:
        engine.stop(grace_s=0.0)
        step, _, detail = said.partition(":")
        raise _not_there(launch.argv[0], detail) if step == "start" else _unconfined(detail)
    return engine


def _spawn(launch: Launch, argv: tuple[str, ...], *, user: str = "", report: int | None = None) -> EngineProcess:
    uid, gid = _identity(user) or (None, None)
    try:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=_STDERR,
            stderr=_STDERR,
            env=dict(launch.env),
            cwd=launch.cwd,
            close_fds=True,
            pass_fds=() if report is None else (report,),
            start_new_session=True,
            umask=_UMASK,
            user=uid,
            group=gid,
            extra_groups=None if uid is None else [],
        )
    except OSError as e:
        raise _not_there(launch.argv[0], e.strerror) from e
    return EngineProcess(launch, child)


def _heard(out: int) -> str | None:
    """What the confined program said before it became the engine: None if that went well. Closes `out`."""
    with open(out, "rb", buffering=0) as pipe:
        ready = select.poll()  # select(2) takes no descriptor over 1023
        ready.register(pipe, select.POLLIN)
        if not ready.poll(_CONFINED_S * 1000):
            return f"network:nothing within {_CONFINED_S:g} s"
        return pipe.read(512).decode(errors="replace") or None


def _not_there(program: str, why: str | None) -> EngineFailed:
    return EngineFailed("engine.start", f"{program}: {why}", hint="is the engine in the image?")


def _unconfined(said: str) -> EngineFailed:
    hint = "let the agent make network namespaces, as root or by user namespaces; or set engine.network: host"
    return EngineFailed("engine.network", f"no network namespace for the engine: {said}", hint=hint)


def replace(launch: Launch, *, user: str = "", apart_from: int | None = None) -> NoReturn:
    """Become the engine as `user` ("": as we are): same process, nothing of ours left but stdio.

    Apart from the network namespace `apart_from`, an inode; None leaves it in ours.
    Raises EngineFailed `engine.start`, `engine.network`.
    """
    _unlink_socket(launch.socket)
    _make_home(launch, user)
    program = _resolved(launch)[0]
    try:
        os.umask(_UMASK)
        os.chdir(launch.cwd)
        _close_on_exec()
        _confine(user, apart_from)
        os.execve(program, list(launch.argv), dict(launch.env))  # noqa: S606  # the catalogue's argv
    except OSError as e:
        raise _not_there(program, e.strerror) from e


def _confine(user: str, apart_from: int | None) -> None:
    if apart_from is None:
        confined.become(_identity(user))
        return
    try:
        confined.enter(_identity(user), apart_from)
    except OSError as e:
        raise _unconfined(confined.told(e)) from e


def _close_on_exec() -> None:
    """No descriptor but stdio passes, whoever opened it."""
    for name in os.listdir("/proc/self/fd"):
        if (fd := int(name)) > 2:
            try:
                os.set_inheritable(fd, False)
            except OSError:  # the one that listed them
                continue


def _resolved(launch: Launch) -> tuple[str, ...]:
    """argv with its program found in the launch's own PATH, never in ours. Raises EngineFailed `engine.start`."""
    program = shutil.which(launch.argv[0], path=launch.env.get("PATH", _SYSTEM))
    if program is None:
        raise _not_there(launch.argv[0], "not found")
    return (program, *launch.argv[1:])


def _dying_with_us() -> tuple[str, ...]:
    setpriv = shutil.which("setpriv", path=_SYSTEM)
    if setpriv is None or threading.current_thread() is not threading.main_thread():
        return ()
    return (setpriv, "--pdeathsig", "SIGKILL", "--")


def _identity(user: str) -> confined.Identity | None:
    if not user:
        return None
    entry = _account(user)
    return entry.pw_uid, entry.pw_gid


def group_of(user: str) -> int:
    """Number of the user's group. Raises EngineFailed `engine.start`."""
    return _account(user).pw_gid


def _account(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError as e:
        raise EngineFailed("engine.start", f"there is no user {user!r:.40}", hint="set engine.user") from e


def _make_home(launch: Launch, user: str) -> None:
    """The engine's private directory, and the one of its socket."""
    try:
        for path, mode in ((launch.socket and os.path.dirname(launch.socket), 0o750), (launch.cwd, 0o700)):
            if path and not os.path.isdir(path):
                os.makedirs(path, mode)
                if user:
                    os.chown(path, _account(user).pw_uid, _account(user).pw_gid)
    except OSError as e:
        raise EngineFailed("engine.start", f"{e.filename}: {e.strerror}", hint="runtime_dir must be ours") from e


def _unlink_socket(path: str) -> None:
    """Raises EngineFailed `engine.start` for anything that is not a socket."""
    if not path:
        return
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise EngineFailed("engine.start", f"{path} is not a socket", hint="remove it")
        Path(path).unlink(missing_ok=True)
    except FileNotFoundError:
        return
    except OSError as e:
        raise EngineFailed("engine.start", f"{path}: {e.strerror}", hint="runtime_dir must be ours") from e
