"""antechamber.yaml to dataclasses. It lies on the verity-protected root and is the only source of trust."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from antechamber import strict
from antechamber.errors import ConfigError
from antechamber.evidence.anchors import Anchors
from antechamber.evidence.policy import signer_key

_RESOURCE = re.compile(r"kbs:///[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*){2}\Z")
_MODEL_HASH = re.compile(r"sha256:[0-9a-f]{64}\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}\Z")


def _require(ok: bool, key: str, seen: object, wanted: str) -> None:
    if not ok:
        raise ConfigError("config.value", f"{key} is {seen!r}", hint=wanted)


def _absolute(key: str, path: str) -> None:
    _require(path.startswith("/"), key, path, "give an absolute path")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustConfig:
    """`trust:`: who may endorse hardware, and who signs collateral and time."""

    intel: str  # "intel", or a PEM certificate: a root that is not Intel's is a simulated one
    nvidia: str  # "nvidia", or a PEM certificate
    collateral_signer: str  # Ed25519 public key, 32 bytes, standard base64
    time_floor: str  # RFC 3339, UTC: no earlier time is believed

    def __post_init__(self) -> None:
        self.anchors()
        self.floor()
        signer_key(self.collateral_signer, "config.value")

    def anchors(self) -> Anchors:
        return Anchors.parse(intel=self.intel, nvidia=self.nvidia, error=ConfigError, code="config.value")

    def floor(self) -> int:
        """Seconds since the epoch."""
        try:
            return strict.parse_utc(self.time_floor)
        except ValueError as e:
            raise ConfigError(
                "config.value", f"trust.time_floor is {self.time_floor!r}", hint="2026-11-24T00:00:00Z"
            ) from e


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """`broker:` in antechamber.yaml."""

    url: str
    ca: str  # PEM file: the only root the broker's certificate may chain to
    timeout_s: int = 10

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            usable = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
        except ValueError:  # `https://[`, or a port that is no number
            usable = False
        _require(usable and self.url.startswith("https://"), "broker.url", self.url, "use https://host:port")
        _require(1 <= self.timeout_s <= 120, "broker.timeout_s", self.timeout_s, "1 to 120")
        _absolute("broker.ca", self.ca)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestConfig:
    """`guest:`: what the machine must look like."""

    cmdline: str  # template of /proc/cmdline; {roothash} stands for 64 hex digits
    kernel: str = "6.16"  # oldest kernel with sysfs RTMRs


@dataclass(frozen=True, slots=True, kw_only=True)
class GpusConfig:
    """`gpus:`"""

    count: int

    def __post_init__(self) -> None:
        _require(1 <= self.count <= 8, "gpus.count", self.count, "1 to 8")


@dataclass(frozen=True, slots=True, kw_only=True)
class InitDataConfig:
    """`init_data:`: host-supplied settings, believed only if their digest is MRCONFIGID."""

    file: str

    def __post_init__(self) -> None:
        _absolute("init_data.file", self.file)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """`model:`"""

    hash: str  # sha256:<hex> of the canonical list of files
    source: str  # directory of the sealed package; the host owns it
    key: str  # kbs:///<repository>/<type>/<tag>
    name: str  # as the API names it

    def __post_init__(self) -> None:
        _require(bool(_MODEL_HASH.match(self.hash)), "model.hash", self.hash, "sha256:<64 hex digits>")
        _require(bool(_RESOURCE.match(self.key)), "model.key", self.key, "kbs:///repository/type/tag")
        _require(bool(re.fullmatch(r"[A-Za-z0-9][\w./:-]{0,127}", self.name)), "model.name", self.name, "a short name")
        _absolute("model.source", self.source)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """`engine:`"""

    kind: Literal["builtin", "vllm", "sglang", "tgi", "tensorrt-llm"]
    image: str = ""  # root hash of the engine's verity image; "" when the engine is on the verity root
    options: tuple[str, ...] = ()  # appended to the catalogue's argv, where the catalogue lets them
    precision: str = "float32"
    start_timeout_s: int = 600
    user: str = ""  # run as; "" keeps the agent's (a laptop)
    network: Literal["own", "host"] = "own"  # a namespace with nothing but loopback; "host": the engine may call out

    def __post_init__(self) -> None:
        _require(1 <= self.start_timeout_s <= 7200, "engine.start_timeout_s", self.start_timeout_s, "1 to 7200")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """`gateway:`"""

    listen: str  # address:port
    names: tuple[str, ...]  # DNS names and addresses for the certificate
    tls_inside_enclave: bool
    max_body_bytes: int = 8 << 20
    max_connections: int = 1024
    verdict_age_s: int = 300  # `x-attestation: required` accepts no older verdict
    nonces_per_minute: int = 30  # for each client
    client_share: int = 4  # one client gets at most this part of connections and bodies: 4 is a quarter, 1 all

    def __post_init__(self) -> None:
        _require(
            self.tls_inside_enclave is True,
            "gateway.tls_inside_enclave",
            self.tls_inside_enclave,
            "TLS ends inside, or nowhere",
        )
        _require(bool(self.names) and all(map(_NAME.match, self.names)), "gateway.names", self.names, "list DNS names")
        port = re.fullmatch(r"[\w.:\[\]-]+:(\d{1,5})", self.listen)
        valid = port is not None and int(port[1]) < 65536
        _require(valid, "gateway.listen", self.listen, "address:port")
        _require(1 <= self.client_share <= 64, "gateway.client_share", self.client_share, "1 to 64")
        _require(1 <= self.verdict_age_s <= 3600, "gateway.verdict_age_s", self.verdict_age_s, "1 to 3600")


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchConfig:
    """`watch:`"""

    interval_s: int = 120
    grace_s: int = 600  # how long the last good verdict carries the guest while the broker is silent

    def __post_init__(self) -> None:
        _require(1 <= self.interval_s <= 3600, "watch.interval_s", self.interval_s, "1 to 3600")
        _require(self.grace_s >= self.interval_s, "watch.grace_s", self.grace_s, "at least interval_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole of antechamber.yaml."""

    version: Literal[1]
    runtime_dir: str  # sockets and the model; on tmpfs
    trust: TrustConfig
    broker: BrokerConfig
    guest: GuestConfig
    gpus: GpusConfig
    model: ModelConfig
    engine: EngineConfig
    gateway: GatewayConfig
    watch: WatchConfig = WatchConfig()
    init_data: InitDataConfig | None = None

    def __post_init__(self) -> None:
        _absolute("runtime_dir", self.runtime_dir)


def load(path: str) -> tuple[Config, bytes]:
    """The configuration, and the exact bytes that the `config` event measures.

    Raises ConfigError `config.*`.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as e:
        raise ConfigError("config.file", f"{path}: {e.strerror}", hint="give --config FILE") from e
    return strict.load_yaml(raw, Config, error=ConfigError, family="config"), raw


def measured(raw: bytes) -> str:
    """Content of the `config` event."""
    return "sha384:" + hashlib.sha384(raw).hexdigest()
