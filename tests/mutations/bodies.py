"""JSON bodies, field by field: the two that a guest sends, and the text of the devices inside the second."""

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

from antechamber.evidence.composite import report_data
from mutations.model import Good, Mutation, Sent

Path = tuple[str | int, ...]
AUTH: tuple[Path, ...] = (
    (),
    ("version",),
    ("tee",),
    ("extra-params",),
    ("extra-params", "supported-hash-algorithms"),
)
_POINT = ("runtime-data", "tee-pubkey")
ATTEST: tuple[Path, ...] = (
    (),
    ("init-data",),
    ("runtime-data",),
    ("runtime-data", "nonce"),
    _POINT,
    *((*_POINT, m) for m in ("alg", "crv", "kty", "x", "y")),
    ("tee-evidence",),
    ("tee-evidence", "primary_evidence"),
    ("tee-evidence", "primary_evidence", "quote"),
    ("tee-evidence", "primary_evidence", "cc_eventlog"),
    ("tee-evidence", "additional_evidence"),
)
_LIST = ("nvidia", "device_evidence_list")
DEVICES: tuple[Path, ...] = (
    (),
    ("nvidia",),
    _LIST,
    (*_LIST, 0),
    *((*_LIST, 0, m) for m in ("arch", "uuid", "evidence", "certificate")),
)
HUGE = 100_000


class Raw(str):
    """Stands in a document as it is."""


def dump(value: Any) -> str:
    """JSON, in which an object may be a list of pairs, and anything Raw text."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{dump(k)}:{dump(v)}" for k, v in value) + "}"
    if isinstance(value, dict):
        return dump(Pairs(value.items()))
    if isinstance(value, list):
        return "[" + ",".join(map(dump, value)) + "]"
    return json.dumps(value)


class Pairs(list[tuple[Any, Any]]):
    """An object whose keys may stand twice."""


_VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "false": False,
    "zero": 0,
    "minus one": -1,
    "a big number": 10**40,
    "a fraction": 1.5,
    "NaN": Raw("NaN"),
    "Infinity": Raw("Infinity"),
    "a number that overflows": Raw("1e999"),
    "empty text": "",
    "a space": " ",
    "a NUL": "\0",
    "a letter": "x",
    "an empty list": [],
    "an empty object": {},
    "huge text": "A" * HUGE,
    "half a surrogate pair": Raw('"\\ud800"'),
    "a surrogate in UTF-8": Raw('"\udcff"'),
    "not JSON": Raw("nope"),
    "nothing": Raw(""),
    "nested deep": Raw("[" * 5000 + "]" * 5000),
    "an unclosed text": Raw('"'),
    "the number -0": Raw("-0"),
    "a leading zero": Raw("01"),
}
_TEXTS: dict[str, Callable[[str], Any]] = {
    "upper case": str.upper,
    "lower case": str.lower,
    "its other case": str.swapcase,
    "without its end": lambda t: t[:-1],
    "without its beginning": lambda t: t[1:],
    "twice": lambda t: t + t,
    "and a space": lambda t: t + " ",
    "after a space": lambda t: " " + t,
    "and a NUL": lambda t: t + "\0",
    "and a line feed": lambda t: t + "\n",
    "a full-width letter first": lambda t: chr(0xFF41) + t[1:],
    "a joiner inside": lambda t: t[:1] + "\u200d" + t[1:],
    "an accent": lambda t: t + "\u0301",
    "reversed": lambda t: t[::-1],
    "as a list of letters": list,
}


def variants(value: Any) -> dict[str, Any]:
    """Operator to what stands there instead; some may be the value itself, of some values."""
    made: dict[str, Any] = dict(_VALUES)
    made |= {"in a list": [value], "in an object": {"value": value}, "as text of JSON": json.dumps(value)}
    if isinstance(value, str):
        made |= {name: change(value) for name, change in _TEXTS.items()}
        made["escaped"] = Raw('"' + "".join(f"\\u{ord(c):04x}" for c in value) + '"')
    if isinstance(value, dict):
        made["with another member"] = value | {"another": 1}
        made["in another order"] = Pairs(reversed(list(value.items())))
        for key in value:
            escaped = Raw('"' + f"\\u{ord(key[0]):04x}" + key[1:] + '"')
            made |= {
                f"{key} twice": Pairs([*value.items(), (key, value[key])]),
                f"{key} twice, first null": Pairs([(key, None), *value.items()]),
                f"{key} in upper case": _renamed(value, key, key.upper()),
                f"{key} and a space": _renamed(value, key, key + " "),
                f"{key} escaped": _renamed(value, key, escaped),
            }
    if isinstance(value, list):
        made |= {"twice": value * 2, "a hundred times": value * 100, "and null": [*value, None]}
    return made


def _renamed(value: dict[str, Any], key: str, new: str) -> Pairs:
    return Pairs((new if k == key else k, v) for k, v in value.items())


def at(document: Any, path: Path) -> Any:
    for key in path:
        document = document[key]
    return document


def put(document: Any, path: Path, new: Any) -> Any:
    """A copy with `new` at `path`."""
    if not path:
        return new
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[path[0]] = put(document[path[0]], path[1:], new)
    return copy


def without(document: Any, path: Path) -> Any:
    copy = dict(document) if isinstance(document, dict) else list(document)
    if len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = without(document[path[0]], path[1:])
    return copy


def encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


# A document of the same shape for each: operators must be known before a session is. Values are read from the good one.
_AUTH = {"version": "0.4.0", "tee": "tdx", "extra-params": {"supported-hash-algorithms": ["sha384"]}}
_JWK = {"alg": "ECDH-ES+A256KW", "crv": "P-256", "kty": "EC", "x": "eHg", "y": "eXk"}
_ATTEST = {
    "init-data": None,
    "runtime-data": {"nonce": "bm9uY2U=", "tee-pubkey": _JWK},
    "tee-evidence": {
        "primary_evidence": {"cc_eventlog": "bG9n", "quote": "cXVvdGU="},
        "additional_evidence": '{"nvidia":{"device_evidence_list":[]}}',
    },
}
_DEVICE = {"arch": "HOPPER", "uuid": "GPU-0", "evidence": "ZXZpZGVuY2U=", "certificate": "Y2VydGlmaWNhdGU="}
_DEVICES = {"nvidia": {"device_evidence_list": [_DEVICE]}}


def mutations() -> Iterator[Mutation]:
    yield from _of("auth", _AUTH, AUTH, lambda good: _AUTH, lambda good, text: good.auth(encode(text)), "auth")
    yield from _of("attest", _ATTEST, ATTEST, Good.attestation, lambda good, text: good.attest(encode(text)), "attest")
    yield from _of("devices", _DEVICES, DEVICES, _devices, _attest_devices, "attest")
    yield from _swaps()


def _devices(good: Good) -> Any:
    return json.loads(good.evidence.additional)


def _attest_devices(good: Good, text: str) -> Any:
    """Well quoted: the devices' text itself is what is judged."""
    clean = text.encode("utf-8", "replace").decode()
    return good.attest(good.attestation(good.quoted_over(clean)))


def _of(name: str, shape: Any, paths: tuple[Path, ...], document: Any, send: Any, flow: Any) -> Iterator[Mutation]:
    for path in paths:
        field = "/".join(map(str, ("body", name, *path)))
        shown = at(shape, path)
        for operator, new in variants(shown).items():
            if type(new) is type(shown) and new == shown:
                continue

            def build(good: Good, path: Path = path, operator: str = operator) -> Any:
                current = document(good)
                return send(good, dump(put(current, path, variants(at(current, path))[operator])))

            yield Mutation(f"{field}: {operator}", flow, build, _same)
        if path and isinstance(path[-1], str):
            yield Mutation(
                f"{field}: left out",
                flow,
                lambda good, path=path: send(good, dump(without(document(good), path))),
                _same,
            )


def _swaps() -> Iterator[Mutation]:
    """Each text of the attestation in the place of each other."""
    leaves = [p for p in ATTEST if isinstance(at(_ATTEST, p), str)]
    for one in leaves:
        for other in leaves:
            if one != other:
                yield Mutation(
                    f"body/attest/{'/'.join(map(str, one))}: the value of {other[-1]}",
                    "attest",
                    lambda good, one=one, other=other: good.attest(
                        put(good.attestation(), one, at(good.attestation(), other))
                    ),
                )


def _same(good: Good, sent: Sent) -> bool:
    """The same JSON value spelled otherwise: order, escapes, null for what may be left out.

    A UUID may be any short text: nothing signs it, and nothing is decided by it.
    """
    try:
        value = json.loads(sent.body.decode(), object_pairs_hook=_once)
        value.setdefault("init-data", None)
        evidence = value["tee-evidence"]
        text, quote = evidence["additional_evidence"], evidence["primary_evidence"]["quote"]
        devices = json.loads(text, object_pairs_hook=_once)
        uuid = devices["nvidia"]["device_evidence_list"][0].pop("uuid")
        str(uuid).encode()  # half a surrogate pair is no text
        bound = base64.b64decode(quote, validate=True)[568:632]
        whole = len(quote) == len(str(good.evidence.primary()["quote"]))
        if not whole or bound != report_data(good.nonce, good.ready.guest.tee.public_jwk, text):
            return False
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False
    wanted, wanted_devices = good.attestation(), _devices(good)
    del wanted_devices["nvidia"]["device_evidence_list"][0]["uuid"]
    wanted["tee-evidence"]["additional_evidence"] = text
    wanted["tee-evidence"]["primary_evidence"]["quote"] = quote
    return value == wanted and devices == wanted_devices and isinstance(uuid, str) and len(uuid) <= 128


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)
