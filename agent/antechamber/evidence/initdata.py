"""Init-data: what the host may set, once its digest is MRCONFIGID. Source: Confidential Containers, init-data 0.1.0.

The host chooses both the text and MRCONFIGID, so this proves consistency, never trust: policies pin MRCONFIGID.
"""

import hashlib
import hmac
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NoReturn

from antechamber.errors import AppraisalRefused, MalformedEvidence

MAX_INIT_DATA = 64 << 10  # bytes
MAX_PARTS = 32  # of one dotted key
SETTINGS = "antechamber.toml"  # our entry in [data]
TEXT_KEYS = ("MODEL_HASH", "MODEL_SOURCE", "MODEL_KEY", "MODEL_NAME", "BROKER_URL")
_ALLOWED = ", ".join((*TEXT_KEYS, "NAMES", "TLS_INSIDE_ENCLAVE"))
_ALGORITHMS = ("sha256", "sha384", "sha512")
# tomllib keeps every beginning of a dotted key: one of 64 KiB would take gigabytes.
_PART = r'(?:[A-Za-z0-9_-]++|"(?:[^"\\\n]|\\.)*+"|\'[^\'\n]*+\')'
_LONG_KEY = re.compile(rf"(?<![A-Za-z0-9_-]){_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{{MAX_PARTS}}}")
_HINT = "write the init-data as docs say: version 0.1.0, an algorithm, and [data] with antechamber.toml"


@dataclass(frozen=True, slots=True)
class InitData:
    """Parsed init-data. Absent settings are None; `digest` is over the raw text."""

    algorithm: str
    digest: bytes
    data: Mapping[str, str] = field(repr=False)
    model_hash: str | None = None
    model_source: str | None = None
    model_key: str | None = None
    model_name: str | None = None
    broker_url: str | None = None
    names: tuple[str, ...] | None = None
    tls_inside_enclave: bool | None = None  # true or absent: false never parses

    @property
    def mr_config_id(self) -> bytes:
        """The digest zero-padded or cut to 48 bytes."""
        return self.digest[:48].ljust(48, b"\0")


def mr_config_id(text: bytes) -> bytes:
    """MRCONFIGID that binds `text`, 48 bytes. Raises as `parse` does."""
    return parse(text).mr_config_id


def require_bound(text: bytes, mr_config_id: bytes) -> InitData:
    """Init-data whose digest is MRCONFIGID. Raises AppraisalRefused `initdata.digest`, and as `parse` does."""
    parsed = parse(text)
    if not hmac.compare_digest(parsed.mr_config_id, mr_config_id):
        raise AppraisalRefused(
            "initdata.digest",
            f"the text has {parsed.mr_config_id.hex()[:16]}, MRCONFIGID is {mr_config_id.hex()[:16]}",
            hint="start the TD with MRCONFIGID set to this init-data's digest",
        )
    return parsed


def parse(text: bytes) -> InitData:
    """Raises MalformedEvidence `initdata.size`, `initdata.toml`, `initdata.shape`, `initdata.algorithm`,
    `initdata.value`; AppraisalRefused `initdata.key`, `initdata.tls`.
    """
    document = _toml(text)
    if set(document) != {"version", "algorithm", "data"} or document["version"] != "0.1.0":
        _malformed("initdata.shape", "not version 0.1.0 with algorithm and [data]")
    algorithm, data = document["algorithm"], document["data"]
    if not isinstance(algorithm, str) or algorithm not in _ALGORITHMS:
        seen = repr(algorithm[:40]) if isinstance(algorithm, str) else type(algorithm).__name__
        _malformed("initdata.algorithm", f"{seen} is not one of {', '.join(_ALGORITHMS)}")
    if not isinstance(data, dict) or not all(isinstance(v, str) for v in data.values()):
        _malformed("initdata.shape", "[data] is not a table of texts")
    digest = hashlib.new(algorithm, text).digest()
    return InitData(algorithm, digest, MappingProxyType(data), **_settings(data.get(SETTINGS, "")))


def _settings(text: str) -> dict[str, Any]:
    """The allow-listed settings as InitData's fields."""
    table = _toml(text.encode())
    if unknown := sorted(set(table) - {*TEXT_KEYS, "NAMES", "TLS_INSIDE_ENCLAVE"}):
        seen = ", ".join(unknown)[:200]
        raise AppraisalRefused("initdata.key", f"the host may not set {seen!r}", hint=f"set only {_ALLOWED}")
    for key in TEXT_KEYS:
        if key in table and not _is_short(table[key]):
            _malformed("initdata.value", f"{key} is not one short line of text")
    names = table.get("NAMES")
    if "NAMES" in table:
        if not isinstance(names, list) or not 1 <= len(names) <= 64 or not all(map(_is_short, names)):
            _malformed("initdata.value", "NAMES is not a list of 1 to 64 names")
        names = tuple(names)
    tls = table.get("TLS_INSIDE_ENCLAVE")
    if "TLS_INSIDE_ENCLAVE" in table and tls is not True:
        seen = "false" if tls is False else f"of type {type(tls).__name__}"  # a number may be too long to print
        raise AppraisalRefused("initdata.tls", f"TLS_INSIDE_ENCLAVE is {seen}", hint="TLS ends inside, or nowhere")
    return {key.lower(): table.get(key) for key in TEXT_KEYS} | {"names": names, "tls_inside_enclave": tls}


def _is_short(value: object) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"[\x21-\x7e](?:[\x20-\x7e]{0,1022}[\x21-\x7e])?", value))


def _toml(text: bytes) -> dict[str, Any]:
    if len(text) > MAX_INIT_DATA:
        _malformed("initdata.size", f"{len(text)} bytes, at most {MAX_INIT_DATA}")
    try:
        decoded = text.decode()
        if _LONG_KEY.search(decoded):
            _malformed("initdata.toml", f"a dotted key of more than {MAX_PARTS} parts")
        return tomllib.loads(decoded)
    except (ValueError, RecursionError) as e:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise MalformedEvidence("initdata.toml", " ".join(str(e).split())[:200], hint=_HINT) from e


def _malformed(code: str, detail: str) -> NoReturn:
    raise MalformedEvidence(code, detail, hint=_HINT)
