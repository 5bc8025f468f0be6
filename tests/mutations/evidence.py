"""Quote, event log, GPU report, certificates and init-data, field by field.

What a layer above binds is bound anew where that is a guest's to do: the quote is over the mutated devices, and a TD
that was measured otherwise quotes so. A signature that only hardware makes is never made anew.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from antechamber.errors import MalformedEvidence
from antechamber.evidence.composite import CompositeEvidence, report_data
from antechamber.simulator import nvidia
from antechamber.simulator.intel import MR_SEAM, SEPT_VE_DISABLE, XFAM, td_body
from mutations.model import Good, Mutation, Sent
from mutations.octets import Field, layout, of_field, somewhere
from mutations.tokens import _negated

_BODY = (
    ("tee_tcb_svn", 16),
    ("mr_seam", 48),
    ("mrsigner_seam", 48),
    ("seam_attributes", 8),
    ("td_attributes", 8),
    ("xfam", 8),
    ("mr_td", 48),
    ("mr_config_id", 48),
    ("mr_owner", 48),
    ("mr_owner_config", 48),
    ("rtmr0", 48),
    ("rtmr1", 48),
    ("rtmr2", 48),
    ("rtmr3", 48),
    ("report_data", 64),
)
QUOTE = layout(
    ("version", 2),
    ("key type", 2),
    ("TEE type", 4),
    ("reserved", 4),
    ("vendor", 16),
    ("user data", 20),
    *_BODY,
    ("signature data size", 4),
    ("signature r", 32),
    ("signature s", 32),
    ("attestation key x", 32),
    ("attestation key y", 32),
    ("certification type", 2),
    ("certification size", 4),
    ("QE cpu_svn", 16),
    ("QE misc_select", 4),
    ("QE reserved1", 28),
    ("QE attributes", 16),
    ("QE mr_enclave", 32),
    ("QE reserved2", 32),
    ("QE mr_signer", 32),
    ("QE reserved3", 96),
    ("QE isv_prod_id", 2),
    ("QE isv_svn", 2),
    ("QE reserved4", 60),
    ("QE report data", 32),
    ("QE report data, rest", 32),
    ("QE signature r", 32),
    ("QE signature s", 32),
    ("auth size", 2),
    ("auth", 32),
    ("chain type", 2),
    ("chain size", 4),
)
CHAIN_AT = QUOTE[-1].end
_SPDM = (
    ("request", 4),
    ("nonce", 32),
    ("slot", 1),
    ("response", 2),
    ("parameters", 2),
    ("block count", 1),
    ("record size", 3),
)
_BLOCK = (("index", 1), ("specification", 1), ("size", 2), ("value type", 1), ("value size", 2), ("digest", 48))
_LOG_RECORDS = 14  # of the firmware's seven and the agent's seven
_GPU_CERTIFICATES, _OPAQUE = 5, 18
Change = Callable[[Good], CompositeEvidence]


def _mutation(name: str, change: Change, neutral: Any = "") -> Mutation:
    return Mutation(name, "attest", lambda good: good.attest(good.attestation(change(good))), neutral)


def mutations() -> Iterator[Mutation]:
    yield from _quote()
    yield from _quoted_otherwise()
    yield from _log()
    yield from _report()
    yield from _certificates()
    yield from _init_data()


def more() -> Iterator[Mutation]:
    """One bit changed, somewhere: in quote, log, report and chain in turn. Without end."""
    number = 0
    while True:
        seed = str(number)
        yield _mutation(
            f"quote/a bit, {seed}",
            lambda g, s=seed: _with_quote(g, somewhere(g.evidence.quote, "q" + s)[1]),
            _same_quote,
        )
        yield _mutation(
            f"log/a bit, {seed}", lambda g, s=seed: _with_log(g, somewhere(g.ready.log, "l" + s)[1]), _same_log
        )
        yield _mutation(
            f"report/a bit, {seed}", lambda g, s=seed: g.with_device(report=somewhere(_report_of(g), "r" + s)[1])
        )
        yield _mutation(
            f"GPU chain/a bit, {seed}",
            lambda g, s=seed: g.with_device(certificate=somewhere(_chain_of(g), "c" + s)[1]),
            _same_chain,
        )
        number += 1


# -- the quote


def _with_quote(good: Good, raw: bytes) -> CompositeEvidence:
    return replace(good.evidence, quote=raw)


def _field_operators(field: Field, value: bytes | None = None) -> list[str]:
    """What `of_field` may be asked for, for whatever stands there."""
    raw = bytes(range(7, 7 + field.size)) if value is None else value
    return [name for name, _ in of_field(bytes(field.at) + raw, field)]


def _operated(raw: bytes, field: Field, operator: str) -> bytes:
    return dict(of_field(raw, field)).get(operator, raw[: field.at] + b"\x5a" * field.size + raw[field.end :])


def _quote() -> Iterator[Mutation]:
    for field in QUOTE:
        for operator in _field_operators(field):
            yield _mutation(
                f"quote/{field.name}: {operator}",
                lambda g, f=field, o=operator: _with_quote(g, _operated(g.evidence.quote, f, o)),
                _same_quote,
            )
    for at in range(CHAIN_AT):
        yield _mutation(
            f"quote/byte {at}",
            lambda g, a=at: _with_quote(
                g, g.evidence.quote[:a] + bytes([g.evidence.quote[a] ^ 1 << a % 8]) + g.evidence.quote[a + 1 :]
            ),
        )
    same = [(a, b) for i, a in enumerate(QUOTE) for b in QUOTE[i + 1 :] if a.size == b.size >= 32]
    for one, other in same:
        yield _mutation(
            f"quote/{one.name}: the value of {other.name}",
            lambda g, a=one, b=other: _with_quote(g, _copied(g.evidence.quote, a, b)),
            _same_quote,
        )
    signature = next(f for f in QUOTE if f.name == "signature r")
    for name, field in (
        ("signature", signature),
        ("QE signature", next(f for f in QUOTE if f.name == "QE signature r")),
    ):
        yield _mutation(
            f"quote/{name}: negated",
            lambda g, f=field: _with_quote(g, _negate(g.evidence.quote, f)),
            "ECDSA: (r, -s) is a signature by the same key over the same bytes",
        )
    tails = {
        "one zero": b"\0",
        "a page of zeros": bytes(4096),
        "one byte": b"\1",
        "zeros and a byte": bytes(64) + b"\1",
        "itself": b"",
    }
    for name, tail in tails.items():
        zero = "the kernel pads quotes: zeros after its own length are no part of it" if tail and not any(tail) else ""
        yield _mutation(
            f"quote/tail: {name}", lambda g, t=tail: _with_quote(g, g.evidence.quote + (t or g.evidence.quote)), zero
        )
    for index in range(3):
        for name, change in _LIST_CHANGES.items():
            yield _mutation(
                f"quote/certificate {index}: {name}",
                lambda g, i=index, c=change: _with_quote(g, _rechained(g.evidence.quote, lambda pems: c(pems, i))),
                _same_quote,
            )


def _copied(raw: bytes, one: Field, other: Field) -> bytes:
    return raw[: one.at] + raw[other.at : other.end] + raw[one.end :]


def _negate(raw: bytes, field: Field) -> bytes:
    return raw[: field.at] + _negated(raw[field.at : field.at + 64]) + raw[field.at + 64 :]


_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\s*", re.DOTALL)
_LIST_CHANGES: dict[str, Callable[[list[bytes], int], list[bytes]]] = {
    "left out": lambda pems, i: pems[:i] + pems[i + 1 :],
    "twice": lambda pems, i: pems[: i + 1] + pems[i:],
    "first": lambda pems, i: [pems[i], *pems[:i], *pems[i + 1 :]],
    "last": lambda pems, i: [*pems[:i], *pems[i + 1 :], pems[i]],
    "empty": lambda pems, i: [*pems[:i], b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", *pems[i + 1 :]],
    "with CRLF": lambda pems, i: [*pems[:i], pems[i].replace(b"\n", b"\r\n"), *pems[i + 1 :]],
    "after a line of text": lambda pems, i: [*pems[:i], b"text\n" + pems[i], *pems[i + 1 :]],
    "as a PUBLIC KEY": lambda pems, i: [*pems[:i], pems[i].replace(b"CERTIFICATE", b"PUBLIC KEY"), *pems[i + 1 :]],
    "in lower case": lambda pems, i: [*pems[:i], pems[i].lower(), *pems[i + 1 :]],
    "without its last line": lambda pems, i: [*pems[:i], pems[i].rpartition(b"-----END")[0], *pems[i + 1 :]],
}


def _rechained(raw: bytes, change: Callable[[list[bytes]], list[bytes]]) -> bytes:
    """Sizes as they then are."""
    pems = b"".join(change(_PEM.findall(raw[CHAIN_AT:]))) + b"\0"
    before = raw[: QUOTE[-1].at] + len(pems).to_bytes(4, "little") + pems
    sizes = {f.name: f for f in QUOTE}
    for name, start in (
        ("certification size", sizes["certification size"].end),
        ("signature data size", sizes["signature r"].at),
    ):
        field = sizes[name]
        before = before[: field.at] + (len(before) - start).to_bytes(4, "little") + before[field.end :]
    return before


def _quoted_otherwise() -> Iterator[Mutation]:
    """Well signed quotes of a TD that is another: its own platform says so, and no policy has it."""
    for name, size in _BODY:
        field = Field(name, 0, size)
        for operator in _field_operators(field):
            if operator.startswith(("cut", "without", "after")):
                continue
            yield _mutation(f"TD/{name}: {operator}", lambda g, n=name, o=operator: _requoted(g, n, o), _unpinned(name))
    for name in ("td_attributes", "xfam"):
        for bit in range(64):
            yield _mutation(f"TD/{name}: bit {bit}", lambda g, n=name, b=bit: _requoted(g, n, b))


def _unpinned(name: str) -> Any:
    if name == "mr_seam":
        return "the policy says: unpinned"
    return _newer if name == "tee_tcb_svn" else ""


def _newer(good: Good, sent: Sent) -> bool:
    """A platform above the newest TCB level is UpToDate, says Intel's algorithm; byte 1 says which module it is."""
    made, least = _sent_evidence(sent), td_body()[:16]
    seen = b"" if made is None else made.quote[48:64]
    return len(seen) == 16 and seen[1] == least[1] and all(a >= b for a, b in zip(seen, least, strict=True))


def _requoted(good: Good, name: str, operator: str | int) -> CompositeEvidence:
    machine = good.ready.guest.machine
    additional = good.evidence.additional
    values: dict[str, Any] = {
        "mr_td": machine.read("mrtd"),
        "report_data": report_data(good.nonce, good.ready.guest.tee.public_jwk, additional),
        "mr_config_id": machine.read("mrconfigid"),
        "td_attributes": SEPT_VE_DISABLE,
        "xfam": XFAM,
        "mr_seam": MR_SEAM,
        "tee_tcb_svn": td_body()[:16],
        "mrsigner_seam": bytes(48),
        "seam_attributes": bytes(8),
        "mr_owner": bytes(48),
        "mr_owner_config": bytes(48),
        **{f"rtmr{i}": machine.read(f"rtmr{i}") for i in range(4)},  # type: ignore[arg-type]
    }
    raw = values[name]
    if isinstance(operator, int):
        values[name] = (int.from_bytes(raw, "little") ^ 1 << operator).to_bytes(len(raw), "little")
    else:
        values[name] = _operated(raw, Field(name, 0, len(raw)), operator)
    rtmr = tuple(values.pop(f"rtmr{i}") for i in range(4))
    return replace(good.evidence, quote=machine.intel.quote_v4(td_body(rtmr=rtmr, **values)))


def _same_quote(good: Good, sent: Sent) -> bool | None:
    """The quote as it was; or, released or not, other white space between the same certificates of its chain."""
    made = _sent_evidence(sent)
    if made is None or made.quote[:CHAIN_AT] != good.evidence.quote[:CHAIN_AT]:
        return False
    if made.quote == good.evidence.quote:
        return True
    return None if _ders(made.quote[CHAIN_AT:]) == _ders(good.evidence.quote[CHAIN_AT:]) else False


# -- the event log


def _with_log(good: Good, log: bytes) -> CompositeEvidence:
    return replace(good.evidence, event_log=log)


def _records(log: bytes) -> list[tuple[Field, list[Field]]]:
    """Each record, and its fields. The header first: SHA-1 form, with the sizes of digests in it."""
    size = int.from_bytes(log[28:32], "little")
    header = layout(
        ("register", 4),
        ("type", 4),
        ("digest", 20),
        ("size", 4),
        ("signature", 16),
        ("class and version", 8),
        ("algorithms", 4),
        ("algorithm", 2),
        ("digest size", 2),
        ("vendor size", 1),
    )
    found = [(Field("header", 0, 32 + size), header)]
    at = 32 + size
    while len(log) - at > 8:
        data = int.from_bytes(log[at + 62 : at + 66], "little")
        fields = layout(
            ("register", 4),
            ("type", 4),
            ("digests", 4),
            ("algorithm", 2),
            ("digest", 48),
            ("size", 4),
            ("data", data),
            at=at,
        )
        found.append((Field(f"record {len(found)}", at, 66 + data), fields))
        at += 66 + data
    return found


def _log() -> Iterator[Mutation]:
    fields = {"register": 4, "type": 4, "digests": 4, "algorithm": 2, "digest": 48, "size": 4, "data": 60}
    header = {
        "register": 4,
        "type": 4,
        "digest": 20,
        "size": 4,
        "signature": 16,
        "class and version": 8,
        "algorithms": 4,
        "algorithm": 2,
        "digest size": 2,
        "vendor size": 1,
    }
    for number in range(_LOG_RECORDS + 1):
        for index, (name, size) in enumerate((fields if number else header).items()):
            for operator in _field_operators(Field(name, 0, size)):
                yield _mutation(
                    f"log/record {number}/{name}: {operator}",
                    lambda g, n=number, i=index, o=operator: _with_log(
                        g, _operated(g.ready.log, _records(g.ready.log)[n][1][i], o)
                    ),
                    _same_log,
                )
        for name, change in _RECORD_CHANGES.items():
            yield _mutation(
                f"log/record {number}: {name}",
                lambda g, n=number, c=change: _with_log(g, _rerecorded(g.ready.log, n, c)),
                _same_log,
            )
    for name, tail in {
        "no end": b"",
        "zeros": bytes(8),
        "half an end": b"\xff" * 4,
        "a byte": b"\xff" * 8 + b"\1",
        "more end": b"\xff" * 64,
    }.items():
        yield _mutation(f"log/end: {name}", lambda g, t=tail: _with_log(g, g.ready.log[:-8] + t), _same_log)


_RECORD_CHANGES: dict[str, Callable[[list[bytes], int], list[bytes]]] = {
    "left out": lambda records, i: records[:i] + records[i + 1 :],
    "twice": lambda records, i: records[: i + 1] + records[i:],
    "with the next one before it": lambda records, i: [
        *records[:i],
        *records[i + 1 : i + 2],
        records[i],
        *records[i + 2 :],
    ],
    "all after it left out": lambda records, i: records[: i + 1],
    "at the end": lambda records, i: [*records[:i], *records[i + 1 :], records[i]],
}


def _rerecorded(log: bytes, number: int, change: Callable[[list[bytes], int], list[bytes]]) -> bytes:
    records = [log[f.at : f.end] for f, _ in _records(log)]
    return b"".join(change(records, number)) + log[-8:]


def _same_log(good: Good, sent: Sent) -> bool:
    """What the quote vouches for is as it was: each register's digests in their order, and the text of the agent's.

    The firmware's text, types and version numbers are nobody's word, and nothing reads them.
    """
    made = _sent_evidence(sent)
    return made is not None and made.event_log is not None and _vouched(made.event_log) == _vouched(good.ready.log)


def _vouched(log: bytes) -> Any:
    """Read here once more, and not with the broker's own parser; None if it is no log."""
    if len(log) < 65 or (log[:32] != bytes(4) and int.from_bytes(log[4:8], "little") != 3):
        return None
    size = int.from_bytes(log[28:32], "little")
    spec = log[32 : 32 + size]
    register = int.from_bytes(log[:4], "little")
    whole = (
        spec[:16] == b"Spec ID Event03\0"
        and spec[24:32] == bytes.fromhex("010000000c003000")
        and len(spec) == size == 33 + int.from_bytes(spec[32:33], "little")
    )
    if not whole or register > 1 or any(log[8:28]):
        return None
    at, seen, separators = 32 + size, [], []
    while (head := log[at : at + 8]).strip(b"\xff") and head.strip(b"\0"):
        register, kind, count, algorithm = (
            int.from_bytes(log[at + a : at + b], "little") for a, b in ((0, 4), (4, 8), (8, 12), (12, 14))
        )
        data = int.from_bytes(log[at + 62 : at + 66], "little")
        if not 1 <= register <= 4 or count != 1 or algorithm != 12 or at + 66 + data > len(log):
            return None
        separators += [register] if kind == 4 else []
        if kind != 3 or register == 4:
            agent = (kind, log[at + 62 : at + 66 + data]) if register == 4 else None
            seen.append((register, log[at + 14 : at + 62], agent))
        at += 66 + data
    rest = log[at:]
    if (rest.strip(b"\xff") and rest.strip(b"\0")) or len(separators) != len(set(separators)):
        return None
    return sorted(seen, key=lambda one: one[0])  # stable: the order within each register


# -- the GPU


def _report_of(good: Good) -> bytes:
    return good.evidence.devices()[0].report


def _chain_of(good: Good) -> bytes:
    return good.evidence.devices()[0].certificate


def _report_fields(raw: bytes) -> list[Field]:
    fields = layout(*_SPDM)
    at = fields[-1].end
    for index in range(64):
        fields += [replace(f, name=f"block {index + 1} {f.name}") for f in layout(*_BLOCK, at=at)]
        at = fields[-1].end
    fields += layout(("responder nonce", 32), ("opaque size", 2), at=at)
    at = fields[-1].end
    for index in range(_OPAQUE):
        size = int.from_bytes(raw[at + 2 : at + 4], "little")
        fields += [
            replace(f, name=f"opaque {index} {f.name}")
            for f in layout(("type", 2), ("size", 2), ("value", size), at=at)
        ]
        at = fields[-1].end
    return fields + layout(("signature r", 48), ("signature s", 48), at=at)


def _report() -> Iterator[Mutation]:
    names = [name for name, _ in _SPDM]
    names += [f"block {i} {name}" for i in (1, 2, 33, 64) for name, _ in _BLOCK]
    names += [
        "responder nonce",
        "opaque size",
        *(f"opaque {i} {n}" for i in range(_OPAQUE) for n in ("type", "size", "value")),
    ]
    for name in [*names, "signature r", "signature s"]:
        for operator in _field_operators(Field(name, 0, 48)):
            yield _mutation(
                f"report/{name}: {operator}",
                lambda g, n=name, o=operator: g.with_device(report=_changed_report(_report_of(g), n, o)),
                lambda good, sent: _sent_device(sent) == _report_of(good),
            )
    yield _mutation(
        "report/signature: negated",
        lambda g: g.with_device(report=_negated_p384(_report_of(g))),
        "ECDSA: (r, -s) is a signature by the same key over the same bytes",
    )
    for name, tail in {"a NUL": b"\0", "two NULs": b"\0\0", "a byte": b"\1", "another report": None}.items():
        yield _mutation(
            f"report/tail: {name}",
            lambda g, t=tail: g.with_device(report=_report_of(g) + (_report_of(g) if t is None else t)),
            "one NUL after it is CoCo's own attester's" if name == "a NUL" else "",
        )
    yield _mutation(
        "report/over another nonce", lambda g: g.with_device(report=g.ready.guest.machine.report(0, bytes(32)))
    )
    yield _mutation("report/of another GPU", _of_another_gpu)


def _changed_report(raw: bytes, name: str, operator: str) -> bytes:
    field = next(f for f in _report_fields(raw) if f.name == name)
    if not field.size:
        return raw[: field.at] + b"\1" + raw[field.at :]
    return _operated(raw, field, operator)


def _of_another_gpu(good: Good) -> CompositeEvidence:
    other = good.ready.guest.machine.nvidia.device(99)
    return good.with_device(report=nvidia.report(other, good.device_nonce()))


_ORDER_384 = int(
    "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973", 16
)  # of P-384


def _negated_p384(raw: bytes) -> bytes:
    return raw[:-48] + (_ORDER_384 - int.from_bytes(raw[-48:], "big")).to_bytes(48, "big")


def _certificates() -> Iterator[Mutation]:
    for index in range(_GPU_CERTIFICATES):
        for name, change in _LIST_CHANGES.items():
            yield _mutation(
                f"GPU chain/certificate {index}: {name}",
                lambda g, i=index, c=change: g.with_device(certificate=b"".join(c(_PEM.findall(_chain_of(g)), i))),
                _same_chain,
            )
        for number in range(40):
            yield _mutation(
                f"GPU chain/certificate {index}: a bit of its DER, {number}",
                lambda g, i=index, n=number: g.with_device(certificate=_changed_der(_chain_of(g), i, str(n))),
            )


def _changed_der(pem: bytes, index: int, seed: str) -> bytes:
    pems = _PEM.findall(pem)
    der = somewhere(_ders(pems[index])[0], f"{index} {seed}")[1]
    pems[index] = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
    return b"".join(pems)


def _same_chain(good: Good, sent: Sent) -> bool | None:
    """Released or not, where only white space between the same certificates differs."""
    made = _sent_evidence(sent)
    devices = None if made is None else made.devices()
    chain = devices[0].certificate if devices else b""
    whole = sum(map(len, _PEM.findall(chain))) == len(chain)
    return None if whole and _ders(chain) == _ders(_chain_of(good)) else False


def _ders(pem: bytes) -> list[bytes]:
    found = []
    for block in re.findall(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----", pem):
        try:
            found.append(base64.b64decode(b"".join(block.split()), validate=True))
        except ValueError:
            found.append(hashlib.sha256(block).digest())
    return found


def _sent_device(sent: Sent) -> bytes | None:
    made = _sent_evidence(sent)
    return None if made is None else made.devices()[0].report


def _sent_evidence(sent: Sent) -> CompositeEvidence | None:
    evidence = json.loads(sent.body)["tee-evidence"]
    try:
        made = CompositeEvidence.from_kbs(evidence["primary_evidence"], evidence["additional_evidence"])
        made.devices()
    except MalformedEvidence:
        return None
    return made


# -- init-data


def _init_data() -> Iterator[Mutation]:
    good_toml = 'version = "0.1.0"\nalgorithm = "sha384"\n[data]\n"a" = "b"\n'
    for name, value in {
        "not this guest's": {"format": "toml", "body": good_toml},
        "empty": {"format": "toml", "body": ""},
        "JSON": {"format": "json", "body": "{}"},
        "not TOML": {"format": "toml", "body": "]["},
        "without a body": {"format": "toml"},
        "without a format": {"body": good_toml},
        "a text": good_toml,
        "a list": [],
        "a huge body": {"format": "toml", "body": "#" * 200_000},
        "another algorithm": {"format": "toml", "body": good_toml.replace("384", "256")},
        "zero's preimage": {"format": "toml", "body": "\0" * 48},
        "a member more": {"format": "toml", "body": good_toml, "hash": "00" * 48},
    }.items():
        yield Mutation(
            f"init-data/{name}", "attest", lambda good, v=value: good.attest(good.attestation() | {"init-data": v})
        )
