"""One simulated guest: its registers, its quote device, its GPUs and what its kernel says of itself."""

import errno
import hashlib
import os
import threading
import time
from dataclasses import dataclass

from antechamber.evidence.composite import GpuEvidence
from antechamber.ports import GpuMode, HostFacts, PciDevice, Register
from antechamber.simulator import ccel, nvidia
from antechamber.simulator.intel import DEBUG_TD, MR_SEAM, SEPT_VE_DISABLE, XFAM, IntelPki, td_body
from antechamber.simulator.knobs import CMDLINE, Knobs
from antechamber.simulator.nvidia import CHIPS, NvidiaPki, SimGpuIdentity

MR_TD = hashlib.sha384(b"simulated TDVF").digest()
REGISTERS: tuple[Register, ...] = ("mrtd", "mrconfigid", "rtmr0", "rtmr1", "rtmr2", "rtmr3")
NOT_SUPPORTED, INVALID_ARGUMENT = 3, 2  # nvmlReturn_t
_MODES: dict[str, nvidia.Mode] = {"none": "spt", "nvle": "mpt", "protected-pcie": "ppcie"}


class NvmlRefusal(Exception):
    """What NVML answers instead: an nvmlReturn_t."""

    def __init__(self, code: int) -> None:
        super().__init__(f"nvmlReturn_t {code}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Stats:
    """What the quote device did since power-on."""

    quotes: int
    quote_s: float  # wall time inside the device


class Machine:
    """Pure state; callable from several threads. The kernel's and RM's rules, plus the knobs for attacks."""

    def __init__(self, intel: IntelPki, gpu_pki: NvidiaPki, knobs: Knobs | None = None) -> None:
        self.intel, self.nvidia, self.knobs = intel, gpu_pki, knobs or Knobs()
        chip = CHIPS[self.knobs.arch]
        pki = gpu_pki if gpu_pki.chip is chip else gpu_pki.of(chip)
        self.gpus: tuple[SimGpuIdentity, ...] = tuple(pki.device(i) for i in range(self.knobs.gpus))
        self._state, self._quote_device = threading.Lock(), threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Power off and on: fresh registers, GPUs not ready, nothing counted."""
        with self._state:
            self._rtmr = [*ccel.registers(), bytes(48)]
            self._ready = self.knobs.ready or self.knobs.devtools  # devtools starts ready
            self._fatal = False
            self._stats = Stats(0, 0.0)

    @property
    def stats(self) -> Stats:
        return self._stats

    # -- the TD

    def read(self, register: Register) -> bytes:
        """48 bytes."""
        if register == "mrtd":
            return bytes.fromhex(self.knobs.mr_td) if self.knobs.mr_td else MR_TD
        if register == "mrconfigid":
            return bytes.fromhex(self.knobs.mr_config_id)
        return self._rtmr[int(register[-1])]

    def extend(self, number: int, digest: bytes) -> None:
        """RTMR = SHA384(RTMR || digest). Raises OSError EINVAL unless `digest` has 48 bytes."""
        if len(digest) != 48:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        with self._state:
            self._rtmr[number] = hashlib.sha384(self._rtmr[number] + digest).digest()

    def extend_rtmr3(self, digest: bytes) -> None:
        self.extend(3, digest)

    def ccel(self) -> bytes:
        return ccel.log()

    def quote(self, report_data: bytes) -> bytes:
        """One quote at a time, as the kernel's driver. Raises OSError: EINVAL, or the knob's number."""
        if len(report_data) != 64:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        with self._quote_device:
            start = time.monotonic()
            time.sleep(self.knobs.quote_s)
            try:
                return self._quote(report_data)
            finally:
                spent = time.monotonic() - start
                self._stats = Stats(self._stats.quotes + 1, self._stats.quote_s + spent)

    def _quote(self, report_data: bytes) -> bytes:
        if self.knobs.quote_errno:
            raise OSError(self.knobs.quote_errno, os.strerror(self.knobs.quote_errno))
        body = td_body(
            mr_td=self.read("mrtd"),
            rtmr=tuple(self._rtmr),
            report_data=report_data,
            mr_config_id=self.read("mrconfigid"),
            td_attributes=DEBUG_TD if self.knobs.debug else SEPT_VE_DISABLE,
        )
        return self.intel.quote_v4(body) if self.knobs.quote_version == 4 else self.intel.quote_v5(body)

    # -- the GPUs, as NVML tells them. Source: NVIDIA open kernel modules, conf_compute_api.c

    def mode(self) -> GpuMode:
        """Protected PCIe does not advertise the CC feature; developer tools run in the simulation environment."""
        on = self.knobs.cc
        return GpuMode(
            environment=("sim" if self.knobs.devtools else "prod") if on else "unavailable",
            cc_feature=on and self.knobs.multi_gpu != "protected-pcie",
            devtools=on and self.knobs.devtools,
            multi_gpu=self.knobs.multi_gpu if on else "none",
            cpu="intel-tdx" if self.knobs.tdx_guest else "none",
        )

    @property
    def ready(self) -> bool:
        return self._ready

    def set_ready(self, ready: bool) -> None:
        """Taking the state back is terminal. Raises NvmlRefusal."""
        with self._state:
            if self._fatal:
                raise NvmlRefusal(INVALID_ARGUMENT)
            if not self.knobs.cc:
                raise NvmlRefusal(NOT_SUPPORTED)
            self._fatal = self._ready and not ready
            self._ready = ready

    def gpu(self, index: int) -> SimGpuIdentity:
        """Raises NvmlRefusal."""
        if not 0 <= index < len(self.gpus):
            raise NvmlRefusal(INVALID_ARGUMENT)
        return self.gpus[index]

    def vbios(self, index: int) -> str:
        return self.knobs.vbios or self.gpu(index).chip.vbios

    def certificate(self, index: int) -> bytes:
        """PEM, leaf first. Raises NvmlRefusal."""
        return self._attesting(index).chain.encode()

    def report(self, index: int, nonce: bytes) -> bytes:
        """Raises NvmlRefusal."""
        return nvidia.report(
            self._attesting(index),
            nonce,
            driver=self.knobs.driver,
            vbios=self.vbios(index),
            mode=_MODES[self.knobs.multi_gpu],
            devtools=self.knobs.devtools,
        )

    def collect(self, nonce: bytes) -> tuple[GpuEvidence, ...]:
        """Evidence of every GPU over a nonce of 32 bytes. Raises NvmlRefusal."""
        return tuple(nvidia.evidence(gpu, self.report(i, nonce)) for i, gpu in enumerate(self.gpus))

    def _attesting(self, index: int) -> SimGpuIdentity:
        if not self.knobs.cc:
            raise NvmlRefusal(NOT_SUPPORTED)
        return self.gpu(index)

    # -- the kernel

    def facts(self) -> HostFacts:
        """What preflight reads."""
        k = self.knobs
        return HostFacts(
            tdx_guest=k.tdx_guest,
            kernel=k.kernel,
            rtmr_sysfs=True,
            cmdline=k.cmdline,
            swap=(k.swap,) if k.swap else (),
            core_pattern=k.core_pattern,
            ptrace_scope=None if k.ptrace_scope < 0 else k.ptrace_scope,
            kexec_disabled=k.kexec_disabled,
            credentials=(k.credential,) if k.credential else (),
            pci=tuple(
                PciDevice(f"0000:{i + 1:02x}:00.0", 0x10DE, g.chip.pci_device, 0x030200)
                for i, g in enumerate(self.gpus)
            ),
            persistenced=k.persistenced,
            registry_dwords=k.registry_dwords,
            image_variant=k.image_variant,
            clocksource="tsc",
        )

    def reference(self) -> dict[str, object]:
        """Reference Values of the healthy machine, for policies. Hex in lower case."""
        rtmr0, rtmr1, rtmr2 = ccel.registers()
        chip = CHIPS[self.knobs.arch]
        return {
            "mr_td": MR_TD.hex(),
            "rtmr0": rtmr0.hex(),
            "rtmr1": rtmr1.hex(),
            "rtmr2": rtmr2.hex(),
            "mr_seam": MR_SEAM.hex(),
            "td_attributes": SEPT_VE_DISABLE.hex(),
            "xfam": XFAM.hex(),
            "fmspc": self.intel.fmspc,
            "cmdline": CMDLINE,
            "gpu": {"arch": chip.arch, "driver": Knobs().driver, "vbios": chip.vbios, "mode": "spt"},
        }
