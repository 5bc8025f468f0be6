"""What boot needs of the machine and of the broker. Adapters live in `hardware` and `broker`."""

from dataclasses import dataclass
from typing import Literal, Protocol

from antechamber.evidence.composite import CompositeEvidence, GpuEvidence
from antechamber.secret import Secret

Register = Literal["mrtd", "mrconfigid", "rtmr0", "rtmr1", "rtmr2", "rtmr3"]


class QuoteSource(Protocol):
    """TDX quotes. Adapter: `hardware.tsm`."""

    def quote(self, report_data: bytes) -> bytes:
        """Quote 64 bytes of REPORTDATA. Raises HardwareUnavailable `tsm.*`."""


class MeasurementSource(Protocol):
    """The TD's measurement registers and its boot event log. Adapter: `hardware.measurements`."""

    def read(self, register: Register) -> bytes:
        """48 bytes. Raises HardwareUnavailable `rtmr.*`."""

    def extend_rtmr3(self, digest: bytes) -> None:
        """RTMR3 = SHA384(RTMR3 || digest), 48 bytes. Cannot be undone. Raises HardwareUnavailable `rtmr.*`."""

    def ccel(self) -> bytes | None:
        """Raw CC event log from ACPI (padding included), or None where the platform has none."""


@dataclass(frozen=True, slots=True)
class GpuMode:
    """System-wide confidential-computing settings, as NVML's numbers say them. Source: nvml.h, ConfCompute."""

    environment: Literal["unavailable", "sim", "prod"]
    cc_feature: bool
    devtools: bool
    multi_gpu: Literal["none", "protected-pcie", "nvle"]
    cpu: Literal["none", "amd-sev", "intel-tdx", "amd-sev-snp", "amd-snp-vtom"]

    @property
    def protected(self) -> bool:
        """The gate: CC on or protected PCIe; never devtools; production environment only."""
        on = self.cc_feature or self.multi_gpu == "protected-pcie"
        return on and not self.devtools and self.environment == "prod"


class GpuSource(Protocol):
    """GPUs through NVML. Adapter: `hardware.nvml`."""

    def mode(self) -> GpuMode: ...

    def count(self) -> int: ...

    def collect(self, nonce: bytes) -> tuple[GpuEvidence, ...]:
        """Evidence of every GPU over a nonce of 32 bytes. Raises HardwareUnavailable `nvml.*`."""

    def ready(self) -> bool:
        """Whether the GPUs accept client work."""

    def set_ready(self) -> None:
        """Let the GPUs accept work, and read the state back. Cannot be taken back without a driver reload."""


@dataclass(frozen=True, slots=True)
class PciDevice:
    address: str  # 0000:01:00.0
    vendor: int  # 0x10de
    device: int
    pci_class: int  # 24 bits, 0x030200


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What preflight judges. Source of each: `hardware.host`."""

    tdx_guest: bool
    kernel: str  # 6.18.44-cloud-amd64
    rtmr_sysfs: bool
    cmdline: str
    swap: tuple[str, ...]
    core_pattern: str
    ptrace_scope: int | None  # None: no Yama
    kexec_disabled: bool
    credentials: tuple[str, ...]  # names of imported system credentials
    pci: tuple[PciDevice, ...]
    persistenced: bool
    registry_dwords: str  # of the nvidia module
    image_variant: str  # VARIANT_ID of os-release, "" if unset
    clocksource: str


class HostProbe(Protocol):
    """Facts of the guest kernel. Adapter: `hardware.host`."""

    def facts(self) -> HostFacts: ...

    def in_memory(self, path: str) -> bool:
        """Whether `path` lies on tmpfs or ramfs."""


@dataclass(frozen=True, slots=True)
class Hardware:
    quotes: QuoteSource
    measurements: MeasurementSource
    gpus: GpuSource
    host: HostProbe


class KeyBroker(Protocol):
    """The agent's view of a KBS. One object is one session at a time. Adapter: `broker.kbs`."""

    def collateral(self, nonce: bytes) -> bytes:
        """The signed collateral-and-time envelope over our nonce (32 bytes). Raises BrokerUnreachable, BrokerDenied."""

    def challenge(self) -> str:
        """Open a session (`/auth`): the nonce exactly as sent."""

    def attest(self, nonce: str, public_jwk: dict[str, str], evidence: CompositeEvidence, init_data: str | None) -> str:
        """`/attest`: the token (EAR, JWT text). Raises BrokerDenied `broker.attest`."""

    def release(self, resource: str) -> bytes:
        """GET of `kbs:///repository/type/tag`: JWE (flattened JSON) sealed to the session's TEE key."""

    def certify(self, request_der: bytes) -> bytes:
        """Certificate chain (PEM, leaf first) for a PKCS#10 request over the attested TLS key."""

    def lease(self) -> bytes:
        """Leave to go on serving, after `released`: JSON. Raises BrokerDenied."""


class TeeKey(Protocol):
    """The guest's key for the broker's JWE. Adapter: `broker.jwe`."""

    @property
    def public_jwk(self) -> dict[str, str]: ...

    def open(self, jwe: bytes) -> Secret:
        """Decrypt a flattened JWE. Raises BrokerDenied `broker.jwe`."""
