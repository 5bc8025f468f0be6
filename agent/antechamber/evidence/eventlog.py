"""The CC event log: CCEL and AAEL records, replay, and the runtime events of RTMR3.

Source: TCG PC Client Platform Firmware Profile (crypto-agile log); UEFI 2.11, 38 (register numbers);
Confidential Containers guest-components, eventlog/tcg2 (AAEL).
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, Self

from antechamber.errors import AppraisalRefused, MalformedEvidence
from antechamber.evidence.composite import MAX_EVENT_LOG
from antechamber.evidence.tdx import TdBody

DOMAIN = "antechamber"
ORDER = ("config", "init-data", "engine", "model", "gpu", "tls", "receipt")
CAP = "released"

# What CoCo sends where the firmware has no CCEL: a Spec ID event without its signature text.
EL_HEADER = bytes.fromhex("0000000003000000" + "00" * 20 + "25000000" + "00" * 24 + "020000000c0030001200200000")
END = b"\xff" * 8
MAX_EVENTS = 8192
MAX_TEXT = 4096  # bytes of one AAEL text
MAX_RUNTIME_EVENTS = 64  # of RTMR3: a token and a bundle carry them, and a broker keeps them
MAX_RUNTIME_TEXT = 64 << 10  # bytes of all AAEL texts

_FIRST = struct.Struct("<II20sI")  # register, type, SHA-1 digest, size
_RECORD = struct.Struct("<III")  # register, type, digest count
_TAGGED = struct.Struct("<II")  # tag, size
_AAEL_TAG = 0x4141454C
_NO_ACTION, _SEPARATOR, _TAG = 3, 4, 6
_SHA384 = 0x000C
_DIGEST_SIZES = {0x000B: 32, _SHA384: 48, 0x000D: 64, 0x0012: 32}
_SPEC_ID = b"Spec ID Event03\0"
_HINT = "send the CCEL and the runtime log of this boot, unchanged"


@dataclass(frozen=True, slots=True)
class Event:
    """One record. Its digest is what the register saw; only RTMR3's events prove their own text."""

    register: int  # 0 to 3: which RTMR
    digest: bytes  # SHA-384
    kind: int
    data: bytes


@dataclass(frozen=True, slots=True)
class AaelEvent:
    """A runtime event of RTMR3: `domain operation content`. Raises MalformedEvidence `eventlog.text`."""

    domain: str
    operation: str
    content: str

    def __post_init__(self) -> None:
        text = self.text
        if text.split(" ", 2) != [self.domain, self.operation, self.content] or "" in text.split(" ", 2):
            _malformed("eventlog.text", f"{text[:80]!r} is not domain, operation and content, single-spaced")
        if not text.isprintable() or self.content.startswith(" ") or len(text.encode()) > MAX_TEXT:
            _malformed("eventlog.text", f"{text[:80]!r} is not one line of at most {MAX_TEXT} bytes")

    @property
    def text(self) -> str:
        return f"{self.domain} {self.operation} {self.content}"

    @property
    def tagged(self) -> bytes:
        """The TaggedEvent, which the digest covers."""
        text = self.text.encode()
        return _TAGGED.pack(_AAEL_TAG, len(text)) + text

    def digest(self) -> bytes:
        """What extends RTMR3: SHA-384, 48 bytes."""
        return hashlib.sha384(self.tagged).digest()

    def encode(self) -> bytes:
        """The TCG2 record, in register 4, which is RTMR3."""
        record = _RECORD.pack(4, _TAG, 1) + struct.pack("<H", _SHA384) + self.digest()
        return record + struct.pack("<I", len(self.tagged)) + self.tagged

    @classmethod
    def parse(cls, event: Event) -> Self:
        """Raises MalformedEvidence `eventlog.foreign`, `eventlog.text`, `eventlog.digest`."""
        if event.kind != _TAG or len(event.data) < _TAGGED.size:
            _malformed("eventlog.foreign", f"an event of type {event.kind:#x} in RTMR3 is no AAEL entry")
        tag, size = _TAGGED.unpack_from(event.data)
        raw = event.data[_TAGGED.size :]
        if tag != _AAEL_TAG or size != len(raw):
            _malformed("eventlog.foreign", f"tag {tag:#x} of {size} bytes, has {len(raw)}")
        try:
            parts = raw.decode().split(" ", 2)
        except UnicodeDecodeError as e:
            raise MalformedEvidence("eventlog.text", "an AAEL text is not UTF-8", hint=_HINT) from e
        if len(parts) != 3:
            _malformed("eventlog.text", f"{len(parts)} words, need domain, operation and content")
        parsed = cls(*parts)
        if parsed.digest() != event.digest:
            _malformed("eventlog.digest", f"{parsed.domain} {parsed.operation}: the digest is not that of its text")
        return parsed


def parse_log(raw: bytes) -> tuple[Event, ...]:
    """All records of a crypto-agile log; it ends at its last byte or in padding of FF or 00 alone.

    Raises MalformedEvidence `eventlog.size`, `eventlog.header`, `eventlog.short`, `eventlog.register`,
    `eventlog.algorithm`, `eventlog.events`, `eventlog.separator`, `eventlog.tail`.
    """
    if len(raw) > MAX_EVENT_LOG:
        _malformed("eventlog.size", f"{len(raw)} bytes, at most {MAX_EVENT_LOG}")
    events, end = _records(raw)
    # TCG PFP, EV_SEPARATOR: one a register, or nobody can tell where the firmware ended.
    separated = [e.register for e in events if e.kind == _SEPARATOR]
    if len(separated) != len(set(separated)):
        _malformed("eventlog.separator", f"EV_SEPARATOR in registers {separated}: one is twice")
    rest = raw[end:]
    if rest.strip(b"\xff") and rest.strip(b"\0"):
        _malformed("eventlog.tail", f"{len(rest)} bytes after the last event are no padding")
    return tuple(events)


def _records(raw: bytes) -> tuple[list[Event], int]:
    """The records up to the padding, and where it begins."""
    events: list[Event] = []
    at = _header(raw)
    while (head := raw[at : at + 8]).strip(b"\xff") and head.strip(b"\0"):
        if len(events) == MAX_EVENTS:
            _malformed("eventlog.events", f"more than {MAX_EVENTS} events")
        event, at = _record(raw, at)
        events.append(event)
    return events, at


def _header(raw: bytes) -> int:
    """Size of the Spec ID event, which says how long digests are."""
    if raw.startswith(EL_HEADER):
        return len(EL_HEADER)
    register, kind, sha1, size = _FIRST.unpack(_slice(raw, 0, _FIRST.size))
    if kind != _NO_ACTION or register > 1 or any(sha1):
        _malformed("eventlog.header", f"type {kind:#x} in register {register} is no Spec ID event")
    spec = _slice(raw, _FIRST.size, size)
    if not spec.startswith(_SPEC_ID) or size < 29:
        _malformed("eventlog.header", "not a crypto-agile log (Spec ID Event03)")
    count = int.from_bytes(spec[24:28], "little")
    if not 1 <= count <= len(_DIGEST_SIZES) or size <= (vendor := 28 + 4 * count):
        _malformed("eventlog.header", f"{count} algorithms in {size} bytes")
    sizes = dict(struct.iter_unpack("<HH", spec[28:vendor]))
    if len(sizes) != count or _SHA384 not in sizes or sizes.items() - _DIGEST_SIZES.items():
        _malformed("eventlog.header", f"digest algorithms {sizes}")
    if size != vendor + 1 + spec[vendor]:
        _malformed("eventlog.header", f"{spec[vendor]} bytes of vendor information in {size}")
    return _FIRST.size + len(spec)


def _record(raw: bytes, at: int) -> tuple[Event, int]:
    register, kind, count = _RECORD.unpack(_slice(raw, at, _RECORD.size))
    if not 1 <= register <= 4:  # 0 is MRTD, which no event extends
        _malformed("eventlog.register", f"register {register} at {at}, not 1 to 4")
    if not 1 <= count <= len(_DIGEST_SIZES):
        _malformed("eventlog.algorithm", f"{count} digests at {at}")
    at += _RECORD.size
    digests: dict[int, bytes] = {}
    for _ in range(count):
        algorithm = int.from_bytes(_slice(raw, at, 2), "little")
        if algorithm not in _DIGEST_SIZES or algorithm in digests:
            _malformed("eventlog.algorithm", f"digest algorithm {algorithm:#x} at {at}")
        digests[algorithm] = _slice(raw, at + 2, _DIGEST_SIZES[algorithm])
        at += 2 + _DIGEST_SIZES[algorithm]
    if _SHA384 not in digests:
        _malformed("eventlog.algorithm", f"no SHA-384 digest before {at}")
    size = int.from_bytes(_slice(raw, at, 4), "little")
    data = _slice(raw, at + 4, size)
    return Event(register - 1, digests[_SHA384], kind, data), at + 4 + size


def _slice(raw: bytes, at: int, size: int) -> bytes:
    if len(raw) - at < size:
        _malformed("eventlog.short", f"{len(raw) - at} bytes left at {at}, need {size}")
    return raw[at : at + size]


def replay(events: Sequence[Event]) -> tuple[bytes, bytes, bytes, bytes]:
    """RTMR0 to RTMR3 after these events: each register starts at zero, EV_NO_ACTION extends nothing."""
    registers = [bytes(48)] * 4
    for event in events:
        if event.kind != _NO_ACTION:
            registers[event.register] = hashlib.sha384(registers[event.register] + event.digest).digest()
    return registers[0], registers[1], registers[2], registers[3]


def require_replay(events: Sequence[Event], body: TdBody) -> None:
    """All four registers as quoted, or AppraisalRefused `eventlog.replay`."""
    for number, (replayed, quoted) in enumerate(zip(replay(events), body.rtmr, strict=True)):
        if replayed != quoted:
            raise AppraisalRefused(
                "eventlog.replay",
                f"RTMR{number}: the log gives {replayed.hex()[:16]}, the quote {quoted.hex()[:16]}",
                hint="nothing but the agent may extend RTMR3, and the log must be whole",
            )


def runtime_events(events: Sequence[Event]) -> tuple[AaelEvent, ...]:
    """RTMR3's events, each an AAEL entry whose digest is that of its own text.

    Raises MalformedEvidence `eventlog.events`, `eventlog.foreign`, `eventlog.text`, `eventlog.digest`.
    """
    ours = [event for event in events if event.register == 3]
    size = sum(len(event.data) for event in ours)
    if len(ours) > MAX_RUNTIME_EVENTS or size > MAX_RUNTIME_TEXT:
        most = f"{MAX_RUNTIME_EVENTS} and {MAX_RUNTIME_TEXT}"
        _malformed("eventlog.events", f"{len(ours)} events of {size} bytes in RTMR3, at most {most}")
    return tuple(AaelEvent.parse(event) for event in ours)


def compose_log(ccel: bytes | None, aael: bytes) -> bytes:
    """`cc_eventlog` as KBS carries it: the CCEL cut at its padding, or EL_HEADER; the AAEL records; 8 bytes of FF.

    Raises MalformedEvidence `eventlog.*` for a CCEL that does not parse.
    """
    return (EL_HEADER if ccel is None else ccel[: _records(ccel)[1]]) + aael + END


def _malformed(code: str, detail: str) -> NoReturn:
    raise MalformedEvidence(code, detail, hint=_HINT)
