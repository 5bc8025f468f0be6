"""Stage 2, preflight: refuse early a machine that no policy would accept. Reads only."""

import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from antechamber import log
from antechamber.boot.settings import Settings, Unbound, bind_init_data
from antechamber.config import EngineConfig, GuestConfig
from antechamber.errors import PlatformUnfit
from antechamber.ports import GpuMode, GpuSource, Hardware, HostFacts, PciDevice

NVIDIA = 0x10DE
_DISPLAY = 0x03  # PCI base class
_PPCIE_DWORDS = {"", "RmEnableProtectedPcie=0x1", "RmEnableProtectedPcie=0x1;"}
_NO_CORES = re.compile(r"(\|/bin/(false|true))?\Z")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with the machine."""

    code: str
    seen: str
    hint: str


@dataclass(frozen=True, slots=True)
class Platform:
    """A machine that preflight found fit, and the settings that are measured on it."""

    facts: HostFacts
    mode: GpuMode
    settings: Settings


@log.stage("preflight")
def preflight(unbound: Unbound, hw: Hardware) -> Platform:
    """One report of everything that is wrong; then init-data, which only a TD's register can vouch for.

    Raises PlatformUnfit: the first fault's code, every fault's detail; and as `bind_init_data` does.
    """
    cfg, facts = unbound.config, hw.host.facts()
    faults = [
        *kernel_faults(facts, cfg.guest),
        *exposure_faults(facts),
        *anchor_faults(facts, vendors=cfg.trust.anchors().vendors),
        *engine_faults(facts, cfg.engine),
        *inventory_faults(facts.pci, cfg.gpus.count),
        *driver_faults(facts),
    ]
    faults += port_faults(cfg.gateway.listen)
    if not hw.host.in_memory(cfg.runtime_dir):
        faults.append(Fault("host.runtime-dir", f"{cfg.runtime_dir} is not on tmpfs", "mount a tmpfs there"))
    if any(fault.code in _NO_NVML for fault in faults):
        refuse(faults)  # NVML would open, and tear down, what is not held
    mode, seen = gpu_faults(hw.gpus, cfg.gpus.count)
    refuse([*faults, *seen])
    return Platform(facts, mode, bind_init_data(unbound, hw.measurements))


def port_faults(listen: str) -> Iterator[Fault]:
    """The gateway binds it last, long after the model key is released: better to know now."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    try:
        socket.create_server((host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as e:
        yield Fault("gateway.listen", f"{listen}: {e.strerror}", "correct gateway.listen, or free the port")


_NO_NVML = ("gpu.persistenced", "host.tdx-guest")


def refuse(faults: list[Fault]) -> None:
    """Raise all faults as one PlatformUnfit; return if there are none."""
    if faults:
        detail = "; ".join(f"[{f.code}] {f.seen}" if i else f.seen for i, f in enumerate(faults))
        raise PlatformUnfit(faults[0].code, detail, hint="; ".join(dict.fromkeys(f.hint for f in faults)))


def kernel_faults(facts: HostFacts, guest: GuestConfig) -> Iterator[Fault]:
    if not facts.tdx_guest:
        yield Fault("host.tdx-guest", "this is no TDX guest", "boot the image as a TD")
    if _numbers(facts.kernel) < _numbers(guest.kernel) or not facts.rtmr_sysfs:
        yield Fault(
            "host.kernel",
            f"kernel {facts.kernel}, {'with' if facts.rtmr_sysfs else 'without'} sysfs RTMRs",
            f"use kernel {guest.kernel} or newer with TDX_GUEST_DRIVER and TSM_MEASUREMENTS",
        )
    template = re.escape(guest.cmdline.strip()).replace(re.escape("{roothash}"), "[0-9a-f]{64}")
    if not re.fullmatch(template, facts.cmdline.strip()):
        yield Fault("host.cmdline", f"kernel command line {facts.cmdline.strip()[:512]!r}", "boot with the image's own")


def exposure_faults(facts: HostFacts) -> Iterator[Fault]:
    if facts.credentials:
        yield Fault("host.credentials", f"imported credentials {', '.join(facts.credentials)}", "import none")
    if facts.swap:
        yield Fault("host.swap", f"swap on {', '.join(facts.swap)}", "no swap: it leaves guest memory")
    if not _NO_CORES.match(facts.core_pattern.strip()):
        yield Fault("host.core", f"core_pattern {facts.core_pattern.strip()!r}", "set kernel.core_pattern=|/bin/false")
    if facts.ptrace_scope is None or facts.ptrace_scope < 2:
        yield Fault("host.ptrace", f"ptrace_scope {facts.ptrace_scope}", "set kernel.yama.ptrace_scope=2 or 3")
    if not facts.kexec_disabled:
        yield Fault("host.kexec", "kexec may load a kernel", "set kernel.kexec_load_disabled=1")


def anchor_faults(facts: HostFacts, *, vendors: bool) -> Iterator[Fault]:
    if facts.image_variant == "prod" and not vendors:
        yield Fault("host.anchor", "a production image with a simulated trust anchor", "configure the vendors' anchors")


def engine_faults(facts: HostFacts, engine: EngineConfig) -> Iterator[Fault]:
    if facts.image_variant == "prod" and engine.network == "host":
        yield Fault("engine.network", "a production image whose engine may call out", "set engine.network: own")


def inventory_faults(pci: tuple[PciDevice, ...], count: int) -> Iterator[Fault]:
    displays = [d for d in pci if d.pci_class >> 16 == _DISPLAY]
    foreign = [d for d in displays if d.vendor != NVIDIA]
    if foreign:
        yield Fault("gpu.foreign", f"GPU of vendor {foreign[0].vendor:#06x} at {foreign[0].address}", "detach it")
    if len(displays) - len(foreign) != count:
        yield Fault(
            "gpu.inventory", f"{len(displays) - len(foreign)} NVIDIA GPUs on PCI, {count} configured", "attach them"
        )


def driver_faults(facts: HostFacts) -> Iterator[Fault]:
    if not facts.persistenced:
        yield Fault(
            "gpu.persistenced",
            "nvidia-persistenced does not hold the GPUs",
            "start it before the agent (Requires=, After=)",
        )
    if facts.registry_dwords.strip().strip('"') not in _PPCIE_DWORDS:
        yield Fault("gpu.registry", f"RegistryDwords {facts.registry_dwords!r}", "load the driver without them")


def gpu_faults(gpus: GpuSource, count: int) -> tuple[GpuMode, list[Fault]]:
    """The gate before a verdict: protected, complete, and not yet let to work."""
    mode, faults = protected_faults(gpus, count)
    if gpus.ready():
        faults.append(
            Fault("gpu.ready", "the GPUs are ready before their verdict", "do not set the ready state at boot")
        )
    return mode, faults


def protected_faults(gpus: GpuSource, count: int) -> tuple[GpuMode, list[Fault]]:
    """The CC mode gate, as NVML says it now. Source: design, section 6."""
    mode, seen, faults = gpus.mode(), gpus.count(), []
    if not mode.protected:
        faults.append(Fault("gpu.cc-mode", f"CC mode is {describe(mode)}", "set CC mode on in the host, devtools off"))
    if mode.cpu != "intel-tdx":
        faults.append(Fault("gpu.cpu", f"the driver sees CPU protection {mode.cpu}", "boot the image as a TD"))
    if seen != count:
        faults.append(Fault("gpu.count", f"NVML sees {seen} GPUs, {count} configured", "attach and bind them all"))
    if seen > 1 and mode.multi_gpu == "none":
        faults.append(Fault("gpu.multi", f"{seen} GPUs in mode none", "use NVLE for more than one"))
    if mode.multi_gpu == "protected-pcie":
        seen_switches = "NVSwitches carry its plaintext, and this version verifies none"
        faults.append(Fault("gpu.switches", f"protected PCIe: {seen_switches}", "use one GPU, or Blackwell's NVLE"))
    return mode, faults


def describe(mode: GpuMode) -> str:
    """`on`, `off`, `devtools`, with what NVML said."""
    word = "devtools" if mode.devtools else "on" if mode.protected else "off"
    return f"{word} (feature {int(mode.cc_feature)}, environment {mode.environment}, multi-GPU {mode.multi_gpu})"


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found.group().split("."))) if found else ()
