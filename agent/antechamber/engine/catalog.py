"""Which engine, started how: kind, model and options to argv and environment. Pure; nothing is inherited.

An option is passed on only if the catalogue names it and its value has the named form; what an engine must never be
told is refused with the reason. Source: each engine's command line (vLLM 0.33, SGLang 0.5, TGI 3.3, TensorRT-LLM 1.2).
"""

import hashlib
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from antechamber import strict
from antechamber.engine.options import ALLOWED, FORBIDDEN
from antechamber.errors import ConfigError, EngineFailed
from antechamber.evidence.composite import canonical

PORT = 8000  # of engines on loopback, in a network namespace of their own
_SUN_PATH = 107  # bytes: the longest path of a unix socket
_NAME = re.compile(r"[A-Za-z0-9][\w./:-]{0,127}", re.ASCII)
_PATH = "/opt/engine/bin:/usr/local/bin:/usr/bin:/bin"
_HINT = "correct engine: in antechamber.yaml"

_VLLM = ("--disable-uvicorn-access-log", "--allowed-media-domains", "media.invalid")  # it fetches no URL for a caller
_TGI = ("--usage-stats", "off", "--json-output")

Transport = Literal["unix", "loopback"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Everything that starting an engine takes."""

    kind: str
    image: str  # root hash of the engine's verity image; "" for an engine on the verity root
    argv: tuple[str, ...]
    env: Mapping[str, str]  # the whole of it
    cwd: str  # private to the engine; made when it starts
    socket: str  # where HTTP is answered: by the engine, or for `loopback` by the relay to PORT
    transport: Transport

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"argv": list(self.argv), "env": dict(self.env)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Launch":
        """What `to_json` gave; other keys are ignored. Raises EngineFailed `engine.launch.*`."""
        own = {k: value[k] for k in cls.__slots__ if k in value}
        return strict.build(own, cls, error=EngineFailed, family="engine.launch")


def plan(
    *, kind: str, image: str, options: tuple[str, ...], model: Path, name: str, socket: Path, python: str = ""
) -> Launch:
    """How to start an engine of this kind. Raises ConfigError `engine.kind`, `engine.path`, `engine.option`."""
    if kind not in ALLOWED:
        raise ConfigError("engine.kind", f"engine {kind!r:.40} is not in the catalogue", hint=_HINT)
    for path in (model, socket):
        if not path.is_absolute() or len(bytes(path)) > _SUN_PATH:
            raise ConfigError("engine.path", f"{path} is not absolute, or too long", hint=f"at most {_SUN_PATH} bytes")
    if not _NAME.fullmatch(name):
        raise ConfigError("engine.path", f"model name {name!r:.140} could be read as an option", hint=_HINT)
    home = str(socket.parent / "home")
    transport: Transport = "unix" if kind in ("builtin", "vllm") else "loopback"
    command = _command(kind, str(model), name, str(socket), python or sys.executable)
    return Launch(
        kind=kind,
        image=image,
        argv=(*command, *permitted(kind, options)),
        env=_environment(kind, home),
        cwd=home,
        socket=str(socket),
        transport=transport,
    )


def measured(launch: Launch) -> str:
    """Content of the `engine` event."""
    text = canonical({"kind": launch.kind, "image": launch.image, "argv": list(launch.argv)})
    return "sha384:" + hashlib.sha384(text).hexdigest()


def _command(kind: str, model: str, name: str, socket: str, python: str) -> tuple[str, ...]:
    loopback = ("--host", "127.0.0.1", "--port", str(PORT))
    served = ("--served-model-name", name)
    return {
        # -I: no PYTHON* variable, no user site, not the working directory
        "builtin": (python, "-I", "-m", "antechamber.engine.builtin", "--model", model, "--socket", socket, *served),
        "vllm": ("vllm", "serve", model, *served, "--uds", socket, *_VLLM),
        "sglang": ("python3", "-I", "-m", "sglang.launch_server", "--model-path", model, *served, *loopback),
        "tgi": ("text-generation-launcher", "--model-id", model, "--hostname", *loopback[1:], *_TGI),
        # it has no option for the served name: clients name the directory
        "tensorrt-llm": ("trtllm-serve", model, "--backend", "pytorch", *loopback),
    }[kind]


def _environment(kind: str, home: str) -> dict[str, str]:
    """No name comes from the caller's environment: not LD_PRELOAD, not PYTHONPATH, not a switch of the engine's."""
    common = {
        "PATH": _PATH,
        "LANG": "C.UTF-8",
        "HOME": home,
        "TMPDIR": home,  # ipc sockets of vLLM and SGLang
        "XDG_CACHE_HOME": f"{home}/.cache",
        "HF_HOME": f"{home}/.cache/huggingface",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    own = {
        "vllm": {"VLLM_NO_USAGE_STATS": "1", "VLLM_PLUGINS": "", "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0"},
        "tensorrt-llm": {"TRTLLM_NO_USAGE_STATS": "1"},
    }
    return common | own.get(kind, {})


def permitted(kind: str, options: tuple[str, ...]) -> tuple[str, ...]:
    """The options, each `--name VALUE` or `--name=VALUE` as given, if the catalogue lets them all.

    Raises ConfigError `engine.option`.
    """
    waiting = list(options)
    seen: set[str] = set()
    while waiting:
        flag, glued, value = waiting.pop(0).partition("=")
        form = _form(kind, flag)
        if flag in seen:
            raise ConfigError("engine.option", f"{flag} stands twice", hint="keep one of them")
        seen.add(flag)
        if form is None:
            bad = bool(glued)
        else:
            value = value if glued else waiting.pop(0) if waiting else ""
            bad = not re.fullmatch(form, value, re.ASCII)
        if bad:
            raise ConfigError(
                "engine.option", f"{flag} does not take {value!r:.60}", hint=f"its form is {form or 'bare'}"
            )
    return options


def _form(kind: str, flag: str) -> str | None:
    """Pattern of the option's value, None for a bare flag. Raises ConfigError `engine.option`."""
    # engines take `_` for `-`, and abbreviations: the reason is named for those too
    plain = flag.replace("_", "-").split(".")[0]
    for name, reason in FORBIDDEN.items():
        if plain == name or (len(plain) > 5 and name.startswith(plain) and flag not in ALLOWED[kind]):
            raise ConfigError("engine.option", f"{flag} is refused: {reason}", hint="remove it from engine.options")
    if flag not in ALLOWED[kind]:
        raise ConfigError(
            "engine.option", f"{flag!r:.60} is not an option that the catalogue lets {kind} have", hint=_HINT
        )
    return ALLOWED[kind][flag]
