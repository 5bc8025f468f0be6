"""broker.yaml: where the broker keeps its parts. Paths are relative to its directory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from antechamber import strict
from antechamber.errors import ConfigError

FILE = "broker.yaml"


def _refuse(key: str, seen: object, hint: str) -> ConfigError:
    return ConfigError("broker.value", f"{key} is {seen!r}", hint=hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """A certificate (PEM) and its key (PEM, mode 0600)."""

    certificate: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSettings:
    """Who signs EAR tokens, and the CA that Relying Parties pin."""

    certificate: str
    key: str
    ca: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminSettings:
    """Whose token administers: an Ed25519 public key (PEM), and the claims its tokens must carry."""

    public_key: str
    issuer: str = "antechamber"
    audience: str = "KBS"
    role: str = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """The whole of broker.yaml."""

    version: Literal[1]
    listen: str  # address:port; port 0 takes a free one
    tls: KeyPair
    policy: str  # the rules: what goes to whom
    collateral: str  # directory of collateral sets, dcap-qvl's JSON
    collateral_key: str  # Ed25519, PEM: signs collateral and time
    master_key: str  # 32 bytes, mode 0600: seals the database
    database: str
    tokens: TokenSettings
    guests: KeyPair  # CA for guests' own TLS keys
    admin: AdminSettings
    session_minutes: int = 5
    keep_refused: int = 0  # bodies of refused guests, the newest, for `antechamber policy explain`

    def __post_init__(self) -> None:
        if not 1 <= self.session_minutes <= 60:
            raise _refuse("session_minutes", self.session_minutes, "1 to 60")
        if not 0 <= self.keep_refused <= 1000:
            raise _refuse("keep_refused", self.keep_refused, "0 to 1000")
        parse_listen(self.listen)


def parse_listen(text: str) -> tuple[str, int]:
    """Address and port. Raises ConfigError `broker.value`."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise _refuse("listen", text, "address:port, such as 127.0.0.1:8080")
    return host.strip("[]"), int(port)


def load_settings(directory: Path) -> BrokerSettings:
    """From `<directory>/broker.yaml`. Raises ConfigError `broker.*`."""
    return strict.load_yaml(read_file(directory, FILE), BrokerSettings, error=ConfigError, family="broker")


def read_file(directory: Path, name: str) -> bytes:
    """Raises ConfigError `broker.file`."""
    path = Path(directory, name)
    try:
        return path.read_bytes()
    except OSError as e:
        raise ConfigError("broker.file", f"{path}: {e.strerror}", hint="make it with `antechamber broker init`") from e


def read_private(directory: Path, name: str) -> bytes:
    """A key file that only its owner reads. Raises ConfigError `broker.file`, `broker.mode`."""
    raw = read_file(directory, name)
    mode = Path(directory, name).stat().st_mode & 0o777
    if mode & 0o077:
        raise ConfigError("broker.mode", f"{Path(directory, name)} has mode {mode:04o}", hint="chmod 0600")
    return raw
