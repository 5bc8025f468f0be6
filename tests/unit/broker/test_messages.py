import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antechamber.broker.jwe import TeeKey
from antechamber.broker.messages import (
    Attestation,
    Challenge,
    Cookie,
    ErrorInformation,
    Request,
    Response,
    default_path,
    parse_path,
    parse_pubkey,
    parse_token,
)
from antechamber.errors import MalformedEvidence
from antechamber.evidence.composite import CompositeEvidence

NONCE = "DJE9yXUVaLtacTf+DznMn5CYrb76/vWJLuFHCxKs49s="
JWK = TeeKey.generate().public_jwk
PARSERS: list[Callable[[bytes], object]] = [
    Request.parse, Challenge.parse, Attestation.parse, Response.parse, ErrorInformation.parse, parse_token,
]  # fmt: skip


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(MalformedEvidence) as refused:
        call()
    return refused.value.code


def attestation(**changes: Any) -> dict[str, Any]:
    value: dict[str, Any] = {
        "init-data": None,
        "runtime-data": {"nonce": NONCE, "tee-pubkey": JWK},
        "tee-evidence": {"primary_evidence": {"quote": "AA==", "cc_eventlog": None}, "additional_evidence": ""},
    }
    return value | changes


def parse(value: object) -> Attestation:
    return Attestation.parse(json.dumps(value).encode())


def test_messages_parse_what_they_build() -> None:
    assert Request.parse(Request("0.4.0", "tdx").build()) == Request("0.4.0", "tdx")
    assert Challenge.parse(Challenge(NONCE).build()) == Challenge(NONCE)
    sent = Attestation.of(NONCE, JWK, CompositeEvidence(b"quote", None, "{}"), 'version = "0.1.0"')
    assert Attestation.parse(sent.build()) == sent
    response = Response("e30", b"key", bytes(12), b"", bytes(16))
    assert Response.parse(response.build()) == response
    error = ErrorInformation("PolicyDeny", "Access denied by policy")
    assert ErrorInformation.parse(error.build()) == error
    assert json.loads(error.build())["type"] == "https://github.com/confidential-containers/kbs/errors/PolicyDeny"


def test_request_refuses_a_missing_member_as_the_protocol_does() -> None:
    assert code_of(lambda: Request.parse(b'{"version":"0.4.0","tee":"tdx"}')) == "kbs.shape"


def test_challenge_refuses_another_hash_and_a_short_nonce() -> None:
    extra = {"selected-hash-algorithm": "sha512"}
    assert code_of(lambda: Challenge.parse(json.dumps({"nonce": NONCE, "extra-params": extra}).encode())) == "kbs.hash"
    assert code_of(lambda: Challenge.parse(b'{"nonce":"AAAA","extra-params":""}')) == "kbs.nonce"


@pytest.mark.parametrize("extra", ["kid", "use", "key_ops"])
def test_pubkey_refuses_by_name_a_member_that_no_server_hashes(extra: str) -> None:
    with pytest.raises(MalformedEvidence) as refused:
        parse_pubkey(JWK | {extra: "1"})
    assert refused.value.code == "kbs.pubkey"
    assert extra in refused.value.detail


@pytest.mark.parametrize(
    "change",
    [
        {"alg": "RSA1_5"}, {"crv": "P-384"}, {"x": "AA"}, {"kty": "oct"}, {"x": JWK["x"] + "="}, {"y": 7},
        {"crv": "P-521"},
    ],
)  # fmt: skip
def test_pubkey_refuses_what_the_protocol_has_not(change: dict[str, Any]) -> None:
    assert code_of(lambda: parse_pubkey(JWK | change)) in ("kbs.pubkey", "kbs.base64")


def test_pubkey_refuses_rsa1_5() -> None:
    assert code_of(lambda: parse_pubkey({"kty": "RSA", "alg": "RSA1_5", "n": "AA", "e": "AQAB"})) == "kbs.pubkey"


def test_attestation_refuses_members_it_does_not_know_at_every_level() -> None:
    for level in ("runtime-data", "tee-evidence"):
        value = attestation()
        value[level] = value[level] | {"more": 1}
        assert code_of(lambda value=value: parse(value)) == "kbs.unknown"
    assert code_of(lambda: parse(attestation(more=1))) == "kbs.unknown"


def test_attestation_reads_init_data_of_toml_only() -> None:
    assert parse(attestation(**{"init-data": {"format": "toml", "body": "a = 1"}})).init_data == "a = 1"
    assert code_of(lambda: parse(attestation(**{"init-data": {"format": "json", "body": ""}}))) == "kbs.init-data"


def test_attestation_refuses_half_a_surrogate_pair() -> None:
    value = attestation()
    value["tee-evidence"]["additional_evidence"] = "\ud800"
    assert code_of(lambda: parse(value)) == "kbs.json"


def test_response_refuses_a_header_outside_the_protected_one() -> None:
    value = json.loads(Response("e30", b"key", bytes(12), b"", bytes(16)).build())
    assert code_of(lambda: Response.parse(json.dumps(value | {"header": {}}).encode())) == "kbs.unknown"
    Response.parse(json.dumps(value | {"aad": "ignored"}).encode())


@pytest.mark.parametrize("path", ["a/b", "a/b/c/d", "../b/c", "a/.b/c", "a/b/c\n", "a/b/c?x", "", "a//c", "é/b/c"])
def test_path_refuses_what_is_not_three_plain_segments(path: str) -> None:
    assert code_of(lambda: parse_path(path)) == "kbs.path"


def test_path_reads_a_kbs_uri() -> None:
    assert parse_path("kbs:///default/model-key/1") == "default/model-key/1"


def test_cookie_without_path_fits_below_its_default_path() -> None:
    cookie = Cookie.parse("kbs-session-id=0123; Expires=Thu, 01 Jan 1970 00:05:00 GMT", "/kbs/v0/auth")
    assert cookie == Cookie("0123", "/kbs/v0")
    assert cookie.fits("/kbs/v0/attest")
    assert cookie.fits("/kbs/v0")
    assert not cookie.fits("/kbs/v01/attest")
    assert not cookie.fits("/other")


def test_cookie_with_path_keeps_it_and_others_are_not_taken() -> None:
    assert Cookie.parse("kbs-session-id=0123; Path=/; Secure", "/kbs/v0/auth") == Cookie("0123", "/")
    assert Cookie.parse("other=0123", "/kbs/v0/auth") is None
    assert Cookie.parse("kbs-session-id=a\r\nb", "/kbs/v0/auth") is None
    assert default_path("/auth") == "/"


@pytest.mark.parametrize("parser", PARSERS)
@given(raw=st.binary(max_size=200))
def test_parser_parses_or_refuses_any_bytes(parser: Callable[[bytes], object], raw: bytes) -> None:
    with suppress(MalformedEvidence):
        parser(raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just(NONCE),
    lambda inner: (
        st.dictionaries(
            st.sampled_from(
                ["nonce", "tee-pubkey", "runtime-data", "tee-evidence", "kty", "init-data", "token", "protected"]
            ),
            inner,
            max_size=4,
        )
        | st.lists(inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("parser", PARSERS)
@given(value=JSON)
def test_parser_parses_or_refuses_any_json(parser: Callable[[bytes], object], value: object) -> None:
    with suppress(MalformedEvidence):
        parser(json.dumps(value).encode())
