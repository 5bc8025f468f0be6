import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antechamber import strict
from antechamber.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    port: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    version: Literal[1]
    inner: Inner
    ratio: float = 0.5
    pin: tuple[str, ...] | Literal["zero"] = "zero"
    maybe: Inner | None = None


def load(text: str) -> Outer:
    return strict.load_yaml(text, Outer, error=ConfigError, family="config")


def test_load_yaml_builds_nested_dataclasses_when_everything_fits() -> None:
    assert load("{version: 1, inner: {port: 1, names: [a, b]}, ratio: 2, pin: [x]}") == Outer(
        version=1, inner=Inner(port=1, names=("a", "b")), ratio=2, pin=("x",)
    )


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "config.type"),
        ("[1]", "config.type"),
        ("{version: 1", "config.syntax"),
        ("{version: 1, version: 1, inner: {port: 1}}", "config.duplicate"),
        ("{version: 1, inner: {port: 1, port: 2}}", "config.duplicate"),
        ("{version: 1, inner: {port: 1}, extra: 1}", "config.unknown"),
        ("{version: 1}", "config.missing"),
        ("{version: 2, inner: {port: 1}}", "config.value"),
        ("{version: true, inner: {port: 1}}", "config.value"),
        ("{version: 1, inner: {port: true}}", "config.type"),
        ("{version: 1, inner: {port: '1'}}", "config.type"),
        ("{version: 1, inner: {port: 1, names: a}}", "config.type"),
        ("{version: 1, inner: {port: 1}, pin: one}", "config.value"),
        ("{version: 1, inner: &a {port: 1}, maybe: *a}", "config.syntax"),
        ("{version: 1, inner: {<<: {port: 1}}}", "config.syntax"),
        ("{1: 1}", "config.syntax"),
        ("!!python/object/apply:os.system [id]", "config.syntax"),
        ("{version: !!bool maybe}", "config.syntax"),
        ("{version: !!timestamp foo}", "config.syntax"),
        ("{version: !!int ''}", "config.syntax"),
        ("{version: !!int 1, inner: {port: 1}}", "config.syntax"),
        ("{version: 1, inner: {port: 1, names: !!set {a}}}", "config.syntax"),
        ("{version: 1, inner: {port: 1, names: ! [a]}}", "config.syntax"),
        ('{version: 1, inner: {port: 1, names: ["\\ud800"]}}', "config.syntax"),
        ('{version: 1, inner: {port: 1, names: ["\\U00110000"]}}', "config.syntax"),
        ('{version: 1, inner: {port: 1, names: ["\\UFFFFFFFF"]}}', "config.syntax"),
        ("--- {version: 1, inner: {port: 1}}\n--- {}", "config.syntax"),
    ],
)
def test_load_yaml_refuses_when_a_key_is_wrong(text: str, code: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(text)
    assert refused.value.code == code


def test_load_yaml_leaves_dates_as_text() -> None:
    assert load("{version: 1, inner: {port: 1, names: [2026-11-24, 2026-11-24T00:00:00Z, =]}}").inner.names == (
        "2026-11-24",
        "2026-11-24T00:00:00Z",
        "=",
    )


def test_load_yaml_refuses_when_the_text_is_too_long() -> None:
    with pytest.raises(ConfigError) as refused:
        load("#" * (strict.MAX_TEXT + 1))
    assert refused.value.code == "config.syntax"


@pytest.mark.parametrize("text", ['{"a":1,"a":2}', "NaN", "[1,]", "[" * 100_000, '"' + "x" * 200 + '"'])
def test_load_json_refuses_when_it_is_ambiguous_or_large(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        strict.load_json(text, error=ConfigError, family="config", limit=150_000 if len(text) > 1000 else 150)
    assert refused.value.code == "config.json"


@pytest.mark.parametrize(
    "text",
    [
        r'"\ud800"', r'["\uDFFF"]', r'{"\uD800":1}', r'{"a":["\udc00\ud800"]}', '"\ud800"',
        b'"\xed\xa0\x80"', b'"\xff"',
        '"a"'.encode("utf-16"),
    ],
)  # fmt: skip
def test_load_json_refuses_when_a_text_cannot_be_encoded(text: str | bytes) -> None:
    with pytest.raises(ConfigError) as refused:
        strict.load_json(text, error=ConfigError, family="config")
    assert refused.value.code == "config.json"


@pytest.mark.parametrize(
    ("text", "value"),
    [(r'"\ud83d\ude00"', "\U0001f600"), (r'"\\ud800"', r"\ud800"), ('"\ud7ff\ue000"', "\ud7ff\ue000")],
)
def test_load_json_takes_characters_however_they_are_written(text: str, value: str) -> None:
    assert strict.load_json(text, error=ConfigError, family="config") == value
    assert strict.load_json(text.encode(), error=ConfigError, family="config") == value


@given(st.text(st.characters(codec=None, categories=["Cs", "Lu"]), max_size=9), st.booleans())
def test_load_json_gives_what_can_be_encoded_or_refuses(text: str, escaped: bool) -> None:
    with suppress(ConfigError):
        strict.load_json(json.dumps([text], ensure_ascii=escaped), error=ConfigError, family="config")[0].encode()


_PIECES = (
    "!!bool", "!!int", "!!float", "!!null", "!!timestamp", "!!binary", "!!set", "!!omap", "!!pairs", "!!map", "!!seq",
    "!!str", "!!merge", "!!value", "!", "!a!b", "!<tag:yaml.org,2002:int>", "%TAG ! x:\n--- ", "\n--- ", " ", "\n",
    ": ", "- ", "? ", "{", "}", "[", "]", ", ", "''", '"', "maybe", "foo", "1", "0x", "0b_", "1:60", "-.inf", ".nan",
    "1e9", "~", "=", "<<", "&a ", "*a", "\\ud800", "\\U00110000", "2026-11-24", "version: ", "inner: ", "port: ", "|",
    ">", "#",
)  # fmt: skip


@given(st.lists(st.sampled_from(_PIECES), max_size=16).map("".join))
def test_load_yaml_parses_or_refuses_text_with_tags(text: str) -> None:
    with suppress(ConfigError):
        strict.load_yaml(text, Outer, error=ConfigError, family="config")


@given(st.one_of(st.text(max_size=200), st.binary(max_size=200)))
def test_load_yaml_parses_or_refuses_any_text(text: str | bytes) -> None:
    with suppress(ConfigError):
        strict.load_yaml(text, Outer, error=ConfigError, family="config")
