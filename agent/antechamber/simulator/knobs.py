"""What a simulated machine can be told to be. Each default is the healthy value."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal, get_args

from antechamber.errors import ConfigError

MultiGpu = Literal["none", "protected-pcie", "nvle"]
CMDLINE = "root=/dev/mapper/root ro roothash={roothash} lockdown=confidentiality"
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """One simulated guest. Names are those of `--knob NAME=VALUE`."""

    debug: bool = False  # the host launched a debug TD
    mr_config_id: str = "00" * 48  # hex: the host chooses it
    mr_td: str = ""  # hex; "" is the reference firmware
    quote_version: int = 4
    quote_s: float = 0.0  # what a quote takes: 1.0 on a stock kernel
    quote_errno: int = 0  # the quote device fails with this number
    gpus: int = 1
    arch: Literal["HOPPER", "BLACKWELL"] = "HOPPER"
    cc: bool = True
    devtools: bool = False
    multi_gpu: MultiGpu = "none"
    driver: str = "570.124.06"
    vbios: str = ""  # "" is the chip's own
    ready: bool = False  # something set the ready state before the agent
    persistenced: bool = True
    registry_dwords: str = ""
    kernel: str = "7.3.4+deb13-cloud-amd64"
    cmdline: str = CMDLINE.format(roothash="5a" * 32)
    swap: str = ""  # a device
    core_pattern: str = "|/bin/false"
    ptrace_scope: int = 2  # negative: a kernel without Yama
    kexec_disabled: bool = True
    credential: str = ""  # name of a system credential that the host passed in
    image_variant: str = "simulated"
    tdx_guest: bool = True

    def __post_init__(self) -> None:
        for name in ("mr_config_id", "mr_td"):
            value = getattr(self, name)
            if value and (len(value) != 96 or set(value) - set("0123456789abcdef")):
                raise _refuse(name, value, "96 lower-case hex digits")
        if self.quote_version not in (4, 5):
            raise _refuse("quote_version", str(self.quote_version), "4 or 5")
        if not 0 <= self.gpus <= 8:
            raise _refuse("gpus", str(self.gpus), "0 to 8")

    @classmethod
    def parse(cls, settings: Iterable[str]) -> "Knobs":
        """From NAME=VALUE texts. Raises ConfigError `simulator.knob`."""
        kinds = {f.name: f.type for f in fields(cls)}
        values: dict[str, object] = {}
        for setting in settings:
            name, separator, text = setting.partition("=")
            if name not in kinds or not separator:
                raise _refuse(name, text, f"NAME=VALUE, with a name of {', '.join(kinds)}")
            values[name] = _value(name, kinds[name], text)
        return cls(**values)  # type: ignore[arg-type]

    def settings(self) -> list[str]:
        """The inverse of `parse`, of what is not at its default."""
        healthy = Knobs()
        names = (f.name for f in fields(self))
        return [f"{n}={getattr(self, n)}" for n in names if getattr(self, n) != getattr(healthy, n)]


def _value(name: str, kind: object, text: str) -> object:
    if choices := get_args(kind):
        if text not in choices:
            raise _refuse(name, text, f"one of {', '.join(choices)}")
        return text
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise _refuse(name, text, "true or false")
        return _BOOLEANS[text.lower()]
    try:
        return {int: int, float: float, str: str}[kind](text)  # type: ignore[index]
    except ValueError as e:
        raise _refuse(name, text, "a number") from e


def _refuse(name: str, value: str, wanted: str) -> ConfigError:
    return ConfigError("simulator.knob", f"{name} is {value[:120]!r}", hint=wanted)
