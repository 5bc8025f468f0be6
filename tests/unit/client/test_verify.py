import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.client.guest import Guest, booted, url
from unit.gateway.world import running

from antechamber.client import report, saved
from antechamber.client.fetch import EndpointUnreachable, Origin
from antechamber.client.verify import public_key, verify_url
from antechamber.errors import AppraisalRefused, ConfigError, MalformedEvidence


def test_verify_accepts_a_guest_that_is_what_the_policy_says() -> None:
    with running() as world:
        guest = booted(world)
        result, pinned = verify_url(url(world), guest.policy())
    assert result.ok, report.as_text(result)
    assert {c.name: c.outcome for c in result.claims}["tls-key"] == "held"
    assert pinned.bundle.nonce.hex() == world.agent.nonces[0]
    assert len(pinned.bundle.nonce) == 32
    result.require()


def test_verify_names_the_claim_that_failed_when_the_policy_pins_another_value() -> None:
    with running() as world:
        guest = booted(world)
        result, _ = verify_url(url(world), guest.policy(mr_td=["00" * 48]))
    assert not result.ok
    with pytest.raises(AppraisalRefused) as refused:
        result.require()
    assert refused.value.code == "appraisal.mr-td"


def test_verify_asks_with_a_new_nonce_each_time() -> None:
    with running() as world:
        policy = booted(world).policy()
        verify_url(url(world), policy)
        verify_url(url(world) + "/", policy)
    assert len(set(world.agent.nonces)) == 2


def test_verify_gets_the_evidence_of_a_past_answer_by_its_digest() -> None:
    with running() as world:
        guest = booted(world)
        digest = world.agent.keep(*guest.bundle("ab" * 32))["sha256"]
        result, pinned = verify_url(url(world), guest.policy(), quote_sha256=digest)
    assert result.ok
    assert pinned.bundle.quote_sha256 == digest
    assert {c.name: c.outcome for c in result.claims}["nonce"] == "not-appraised"


def test_saved_bundle_verifies_again_offline_at_its_signed_time(tmp_path: Path) -> None:
    path = tmp_path / "bundle.json"
    with running() as world:
        guest = booted(world)
        _, pinned = verify_url(url(world), guest.policy())
        saved.save(path, pinned)
    assert path.read_bytes() == pinned.text
    assert path.stat().st_mode & 0o777 == 0o644
    result, _ = saved.verify_saved(path.read_bytes(), guest.policy())
    assert result.ok
    assert result.time == guest.time


def test_save_refuses_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with running() as world:
        _, pinned = verify_url(url(world), booted(world).policy())
    for path in (tmp_path / "none" / "b.json", tmp_path):
        with pytest.raises(ConfigError) as refused:
            saved.save(path, pinned)
        assert refused.value.code == "save.file"
    assert list(tmp_path.iterdir()) == []


def test_verify_says_why_when_the_gateway_refuses() -> None:
    with running() as world:
        world.agent.silent = True
        with pytest.raises(EndpointUnreachable) as refused:
            verify_url(url(world), Guest(world.certificate).policy())
    assert (refused.value.code, refused.value.exit_status) == ("endpoint.status", 75)
    assert "attestation.unavailable" in refused.value.detail


@pytest.mark.parametrize(
    "bad",
    ["http://h", "h:8443", "https://", "https://h/v1", "https://h?x", "https://u:p@h", "https://h:99999", "https://h:0",
     "https://h\r\nx", "https://[::1", ""],
)  # fmt: skip
def test_origin_refuses_a_url_that_is_none(bad: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Origin.parse(bad)
    assert refused.value.code == "endpoint.url"


def test_report_is_one_json_object() -> None:
    with running() as world:
        result, _ = verify_url(url(world), booted(world).policy())
    shown = json.loads(json.dumps(report.as_json(result)))
    assert shown["ok"] is True
    assert {"name", "outcome", "seen", "wanted", "code"} == set(shown["claims"][0])


@given(st.text(max_size=60) | st.from_regex(r"https://[a-z0-9.:@\[\]%]{0,30}/?", fullmatch=True))
def test_origin_parses_or_refuses_any_text(text: str) -> None:
    with suppress(ConfigError):
        origin = Origin.parse(text)
        assert 0 < origin.port <= 65535
        assert not set("\r\n /") & set(origin.host)


@given(st.binary(max_size=80))
def test_certificate_parses_or_is_refused_whatever_its_bytes(raw: bytes) -> None:
    with suppress(MalformedEvidence):
        public_key(raw)
