"""One line of JSON in, one out, on the agent's socket: neither end believes the other's form."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antechamber.boot.handover import parse_answer, parse_request
from antechamber.errors import AgentError, AppraisalRefused, ConfigError, HardwareUnavailable

LINES = st.binary(max_size=64) | st.from_regex(rb'\{"(ok|op|code)":(true|false|null|"[a-z.]{0,9}")\}', fullmatch=True)


@given(LINES)
def test_request_parses_or_refuses_any_bytes(line: bytes) -> None:
    with suppress(ConfigError):
        assert isinstance(parse_request(line), dict)


@given(LINES)
def test_answer_parses_or_refuses_any_bytes(line: bytes) -> None:
    with suppress(HardwareUnavailable, AppraisalRefused):
        assert parse_answer(line, "agent.sock")["ok"] is True


@pytest.mark.parametrize(
    "line",
    [b"[" * 50_000, b'{"op":"verdict","op":"engine"}', b"[]", b" " * (1 << 17), b"", b'{"op":"\\ud800"}'],
    ids=["deep", "duplicate", "list", "long", "empty", "surrogate"],
)
def test_request_is_refused(line: bytes) -> None:
    """At `deep` the thread ended without an answer: RecursionError is no ValueError."""
    with pytest.raises(ConfigError) as refused:
        parse_request(line)
    assert refused.value.code == "handover.op"


@pytest.mark.parametrize(
    "line", [b"", b"[" * 50_000, b"[]", b"1", b'{"ok":false}', b'{"ok":false,"code":"no code"}', b'{"ok":1}']
)
def test_answer_is_no_agents_when_it_has_not_its_form(line: bytes) -> None:
    """A list has no `get`, and a refusal took any word for its code."""
    with pytest.raises(HardwareUnavailable) as refused:
        parse_answer(line, "agent.sock")
    assert refused.value.code == "handover.none"


def test_answer_is_the_agents_own_refusal() -> None:
    with pytest.raises(AgentError) as refused:
        parse_answer(b'{"ok":false,"code":"handover.spent","detail":"engine","hint":"once"}', "agent.sock")
    assert (refused.value.code, refused.value.detail) == ("handover.spent", "engine")
