"""CCEL and AAEL: parse, replay, the runtime events, and the log as KBS carries it."""

import hashlib
import struct

from fuzz.contract import VECTORS, Target
from fuzz.mutation import Mutator

from antechamber.evidence.eventlog import (
    DOMAIN,
    EL_HEADER,
    END,
    ORDER,
    AaelEvent,
    Event,
    compose_log,
    parse_log,
    replay,
    runtime_events,
)
from antechamber.simulator import ccel


def run(data: bytes) -> None:
    events = parse_log(data)
    assert len(replay(events)) == 4
    again = EL_HEADER + b"".join(map(written, events)) + END
    assert parse_log(again) == events, "the events, written again, parse otherwise"
    assert replay(parse_log(again)) == replay(events)
    composed = compose_log(data, AaelEvent("a", "b", "c").encode())
    assert parse_log(composed)[:-1] == events, "what is appended to a log changes what was in it"
    for event in runtime_events(events):
        assert AaelEvent.parse(parse_log(EL_HEADER + event.encode())[0]) == event, "an entry, encoded, is another"


def written(event: Event) -> bytes:
    """One record, with the one digest that counts."""
    head = struct.pack("<IIIH", event.register + 1, event.kind, 1, 0x000C) + event.digest
    return head + struct.pack("<I", len(event.data)) + event.data


def seeds() -> list[bytes]:
    aael = b"".join(AaelEvent(DOMAIN, operation, f"sha384:{'ab' * 48}").encode() for operation in (*ORDER, "released"))
    records = [struct.pack("<IIIH", r, 4, 1, 12) + bytes(48) + struct.pack("<I", 4) + bytes(4) for r in (1, 2, 3)]
    two = struct.pack("<IIIH", 1, 8, 2, 11) + bytes(32) + struct.pack("<H", 12) + bytes(48) + struct.pack("<I", 0)
    spec = b"Spec ID Event03\0" + bytes(4) + bytes([0, 2, 0, 2]) + struct.pack("<IHHHHB", 2, 11, 32, 12, 48, 0)
    header = struct.pack("<II20sI", 1, 3, b"", len(spec)) + spec
    foreign = struct.pack("<IIIH", 4, 6, 1, 12) + bytes(48) + struct.pack("<I", 8) + bytes(8)
    return [
        EL_HEADER + aael + END,
        compose_log(ccel.log(), aael),
        header + two + b"".join(records) + bytes(64),
        EL_HEADER + foreign,
        EL_HEADER + AaelEvent("other", "op", "content with spaces").encode() * 3,
    ]


def vectors() -> list[bytes]:
    return [p.read_bytes() for p in sorted((VECTORS / "ccel").rglob("*")) if p.suffix in (".dat", ".bin")]


def mutate(m: Mutator, data: bytes) -> bytes:
    events = list(parse_log(data))
    match m.random.randrange(4):
        case 0:  # an entry whose digest is that of its text
            text = m.text(f"{DOMAIN} model sha256:00").split(" ", 2)
            tagged = struct.pack("<II", 0x4141454C, len(" ".join(text).encode())) + " ".join(text).encode()
            events.append(Event(3, hashlib.sha384(tagged).digest(), 6, tagged))
        case 1 if events:
            at = m.random.randrange(len(events))
            old = events[at]
            kind = m.random.choice((0, 3, 4, 6, 8, 0x80000001, old.kind))
            events[at] = Event(m.random.randrange(4), m.same_size(old.digest), kind, m.bytes(old.data))
        case 2 if events:
            at = m.random.randrange(len(events))
            events[at:at] = [events[at]] * m.random.choice((1, 3, 70))
        case _ if events:  # moved
            events.insert(0, events.pop(m.random.randrange(len(events))))
    padding = m.random.choice((b"", END, bytes(9), b"\xff\0"))
    return EL_HEADER + b"".join(map(written, events)) + padding


TARGET = Target(name="eventlog", run=run, seeds=seeds, mutate=mutate, max_len=1 << 15, vectors=vectors)
