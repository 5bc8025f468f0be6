"""Strict YAML and JSON to dataclasses: unknown, duplicate, missing and mistyped keys are refused."""

import dataclasses
import datetime as dt
import difflib
import functools
import json
import types
from collections.abc import Mapping
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from antechamber.errors import AgentError

T = TypeVar("T")

MAX_TEXT = 1 << 20  # bytes: no configuration or policy comes near it
MAX_DEPTH = 32  # collections within one another in YAML
MAX_NUMBER = 40  # characters of a number in YAML: 0x has no limit of Python's, and what prints it does
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _Duplicate(ValueError):
    pass


_IMPLICIT = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "merge")}  # merge: to refuse it


class _UniqueLoader(yaml.SafeLoader):  # in Python: libyaml composes aliases where no hook sees them
    """SafeLoader that refuses duplicate keys, aliases (expansion bombs), merge keys, explicit tags, and what is deep.

    A plain scalar is null, a truth value, a number or text: a date stays text.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012  # as PyYAML declares it
        first: [(tag, pattern) for tag, pattern in known if tag in _IMPLICIT]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        tag = self.peek_event().tag  # type: ignore[no-untyped-call]
        if tag is not None:  # PyYAML's constructors crash on a value that its tag misnames
            raise yaml.YAMLError(f"tag {tag!r} is not allowed")
        if self.depth > MAX_DEPTH:
            raise yaml.YAMLError(f"more than {MAX_DEPTH} collections within one another")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(node, yaml.ScalarNode):
            node.value.encode()  # an escape may name half a surrogate pair, which is no character
            if node.tag in _NUMBERS and len(node.value) > MAX_NUMBER:
                raise yaml.YAMLError(f"a number of {len(node.value)} characters, at most {MAX_NUMBER}")
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.YAMLError(f"key {key!r} is not text")
            if key in seen:
                raise _Duplicate(key)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def load_yaml(text: str | bytes, kind: type[T], *, error: type[AgentError], family: str) -> T:
    """One strict dataclass from YAML text of at most 1 MiB.

    Raises `error` with `<family>.syntax`, `.duplicate`, `.unknown`, `.missing`, `.type`, `.value`.
    """
    if len(text) > MAX_TEXT:
        _refuse(error, f"{family}.syntax", f"{len(text)} bytes, at most {MAX_TEXT}")
    try:
        value = yaml.load(text, Loader=_UniqueLoader)  # noqa: S506  # a SafeLoader
    except _Duplicate as e:
        raise error(f"{family}.duplicate", f"key {e} stands twice", hint="keep one of them") from e
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as e:  # overflow: an escape past all characters
        raise error(f"{family}.syntax", " ".join(str(e).split()), hint="correct the YAML") from e
    return build(value, kind, error=error, family=family)


def parse_utc(text: str) -> int:
    """Seconds since the epoch, of `2026-11-24T00:00:00Z`. Raises ValueError."""
    return int(dt.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=dt.UTC).timestamp())


def load_json(
    text: str | bytes, *, error: type[AgentError], family: str, limit: int = MAX_TEXT, structure: int | None = None
) -> Any:
    """JSON value; duplicate keys, NaN, lone surrogates, bytes that are not UTF-8, texts over `limit` bytes and those
    with over `structure` characters of `{[,:` are refused (`<family>.json`)."""
    if len(text) > limit:
        _refuse(error, f"{family}.json", f"{len(text)} bytes, at most {limit}")
    if structure is not None and (found := count_structure(text)) > structure:
        _refuse(error, f"{family}.json", f"{found} of {{[,: in it, at most {structure}")
    try:
        text = text.decode() if isinstance(text, bytes) else text  # json would guess UTF-16, and let surrogates pass
        value = json.loads(text, object_pairs_hook=_unique_pairs, parse_constant=_no_constant)
        if "\\u" in text or not text.isascii():  # only these can hold one: most texts are not walked
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as e:
        raise error(f"{family}.json", str(e)[:200], hint="send valid JSON without duplicate keys") from e


def count_structure(text: str | bytes) -> int:
    """Of `{[,:`, those in texts included: 8 MiB of `[{},{},..]` take hundreds once built, so they are counted first."""
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
    return sum(map(raw.count, (b"{", b"[", b",", b":")))


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("duplicate key")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def build(value: Any, kind: type[T], *, error: type[AgentError], family: str, at: str = "") -> T:
    """`value` (from YAML or JSON) as an instance of the dataclass `kind`, nothing missing or left over."""
    return _Builder(error, family).convert(value, kind, at)  # type: ignore[no-any-return]


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


class _Builder:
    def __init__(self, error: type[AgentError], family: str) -> None:
        self.error, self.family = error, family

    def refuse(self, reason: str, detail: str) -> NoReturn:
        _refuse(self.error, f"{self.family}.{reason}", detail)

    def convert(self, value: Any, kind: Any, at: str) -> Any:
        origin = get_origin(kind)
        if dataclasses.is_dataclass(kind):
            return self.dataclass(value, kind, at)
        if origin is tuple:
            return self.sequence(value, get_args(kind)[0], at)
        if origin in (dict, Mapping):
            return self.mapping(value, get_args(kind)[1], at)
        if origin is Literal:
            if value not in get_args(kind) or isinstance(value, bool):
                self.refuse("value", f"{at} is {value!r}, not one of {', '.join(map(repr, get_args(kind)))}")
            return value
        if origin in (Union, types.UnionType):
            return self.union(value, get_args(kind), at)
        if not self.fits(value, kind):
            self.refuse("type", f"{at or 'document'} is {type(value).__name__}, not {getattr(kind, '__name__', kind)}")
        return value

    @staticmethod
    def fits(value: Any, kind: Any) -> bool:
        if kind is type(None):
            return value is None
        if isinstance(value, bool):
            return kind is bool
        return isinstance(value, kind) or (kind is float and isinstance(value, int))

    def union(self, value: Any, kinds: tuple[Any, ...], at: str) -> Any:
        for kind in kinds:
            structured = dataclasses.is_dataclass(kind) or get_origin(kind) in (dict, Mapping)
            if structured and isinstance(value, dict):
                return self.convert(value, kind, at)
            if get_origin(kind) is tuple and isinstance(value, list):
                return self.convert(value, kind, at)
            if get_origin(kind) is Literal and not isinstance(value, bool) and value in get_args(kind):
                return value
            if isinstance(kind, type) and not structured and self.fits(value, kind):
                return value
        return self.refuse("value", f"{at} is {value!r}, not {' or '.join(map(_spell, kinds))}")

    def sequence(self, value: Any, item: Any, at: str) -> Any:
        if not isinstance(value, list):
            self.refuse("type", f"{at} is {type(value).__name__}, not a list")
        return tuple(self.convert(v, item, f"{at}[{i}]") for i, v in enumerate(value))

    def mapping(self, value: Any, item: Any, at: str) -> Any:
        if not isinstance(value, dict):
            self.refuse("type", f"{at} is {type(value).__name__}, not a mapping")
        return {k: self.convert(v, item, f"{at}.{k}".lstrip(".")) for k, v in value.items()}

    def dataclass(self, value: Any, kind: Any, at: str) -> Any:
        if value is None and not at:
            self.refuse("type", "the document is empty")
        if not isinstance(value, dict):
            self.refuse("type", f"{at or 'document'} is {type(value).__name__}, not a mapping")
        fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
        given = {}
        for key, item in value.items():
            if key not in fields:
                near = difflib.get_close_matches(str(key)[:64], fields, n=1)
                meant = f"; did you mean {near[0]}?" if near else f"; keys are {', '.join(fields)}"
                self.refuse("unknown", f"{at}.{key}".lstrip(".") + f" is not a key here{meant}")
            given[key] = self.convert(item, _hints(kind)[key], f"{at}.{key}".lstrip("."))
        for name, field in fields.items():
            if name not in given and _required(field):
                self.refuse("missing", f"{at}.{name}".lstrip(".") + " is missing")
        return kind(**given)


def _required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _spell(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    return "null" if kind is type(None) else getattr(kind, "__name__", str(kind))


def _refuse(error: type[AgentError], code: str, detail: str) -> NoReturn:
    raise error(code, detail, hint="docs/examples has a complete file of each kind")
