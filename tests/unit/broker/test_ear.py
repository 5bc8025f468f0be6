"""EAR tokens: what the broker signs, what a Relying Party reads, and each reason to refuse one."""

import base64
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from antechamber.broker.authority import Authority
from antechamber.broker.ear import TokenSigner
from antechamber.errors import AgentError, AppraisalRefused, BrokerDenied, MalformedEvidence
from antechamber.evidence.ear import EVIDENCE, MAX_TOKEN, PROFILE, parse_ear

NOW = 1_790_000_000
CA = Authority.create("tokens", now=NOW)
PEM = CA.pem()[0].decode()
KEY = ec.generate_private_key(ec.SECP256R1())


def signer(key: ec.EllipticCurvePrivateKey = KEY, ca: Authority = CA, days: int = 30) -> TokenSigner:
    leaf = ca.issue(key.public_key(), "signer", names=(), usage=(), now=NOW, days=days)
    return TokenSigner(key, [leaf, ca.certificate])


def event(operation: str, content: str, domain: str = "antechamber") -> dict[str, Any]:
    return {"details": {"data": {"domain": domain, "operation": operation, "content": content}}}


def claims(events: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    logged = [event("tls", "sha384:aa")] if events is None else events
    cpu = {
        "ear.status": "affirming",
        "ear.appraisal-policy-id": "demo",
        EVIDENCE: {"tdx": {"uefi_event_logs": logged}},
    }
    value: dict[str, Any] = {
        "eat_profile": PROFILE,
        "iat": NOW,
        "exp": NOW + 300,
        "iss": "broker",
        "jti": "1",
        "tee-pubkey": {"kty": "EC"},
        "submods": {"cpu0": cpu, "gpu0": {"ear.status": "affirming"}},
    }
    return value | changes


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(AgentError) as refused:
        call()
    assert isinstance(refused.value, MalformedEvidence | AppraisalRefused)
    return refused.value.code


def parts(token: str) -> list[dict[str, Any]]:
    return [json.loads(base64.urlsafe_b64decode(p + "==")) for p in token.split(".")[:2]]


def test_ear_reads_what_the_broker_signed() -> None:
    read = parse_ear(signer().sign(claims()), PEM, NOW + 10)
    assert (read.status, read.policy, read.tls, read.expires) == ("affirming", "demo", "sha384:aa", NOW + 300)
    assert read.submods == {"cpu0": "affirming", "gpu0": "affirming"}


def test_ear_that_nobody_would_read_is_not_signed() -> None:
    text = "x" * (MAX_TOKEN // 4 * 3)
    with pytest.raises(BrokerDenied, match=r"broker\.fault"):
        signer().sign(claims(pad=text))
    parse_ear(signer().sign(claims(pad=text[:-5000])), PEM, NOW)


def test_ear_header_has_the_chain_where_trustee_reads_it() -> None:
    header, _ = parts(signer().sign(claims()))
    assert set(header) == {"typ", "alg", "jwk"}
    assert (header["alg"], header["jwk"]["kty"], header["jwk"]["crv"]) == ("ES256", "EC", "P-256")
    assert len(header["jwk"]["x5c"]) == 2


def test_ear_names_no_tls_key_of_another_domain() -> None:
    token = signer().sign(claims([event("tls", "sha384:aa", domain="other")]))
    assert parse_ear(token, PEM, NOW).tls is None


def test_ear_refuses_an_event_that_stands_twice() -> None:
    token = signer().sign(claims([event("tls", "sha384:aa"), event("tls", "sha384:bb")]))
    assert code_of(lambda: parse_ear(token, PEM, NOW)) == "ear.shape"


def test_ear_refuses_another_ca() -> None:
    other = Authority.create("tokens", now=NOW)
    assert code_of(lambda: parse_ear(signer(ca=other).sign(claims()), PEM, NOW)) == "ear.chain"


def test_ear_refuses_a_signer_that_is_a_ca() -> None:
    token = TokenSigner(CA.key, [CA.certificate]).sign(claims())
    assert code_of(lambda: parse_ear(token, PEM, NOW)) == "ear.chain"


def test_ear_refuses_another_key_under_the_signers_certificate() -> None:
    forged = TokenSigner(ec.generate_private_key(ec.SECP256R1()), signer().chain)
    assert code_of(lambda: parse_ear(forged.sign(claims()), PEM, NOW)) == "ear.signature"


def test_ear_refuses_changed_claims() -> None:
    head, _, signature = signer().sign(claims()).split(".")
    body = base64.urlsafe_b64encode(json.dumps(claims(exp=NOW + 9999)).encode()).rstrip(b"=").decode()
    assert code_of(lambda: parse_ear(f"{head}.{body}.{signature}", PEM, NOW)) == "ear.signature"


@pytest.mark.parametrize(("at", "code"), [(NOW + 300, "ear.expired"), (NOW - 301, "ear.chain")])
def test_ear_refuses_at_another_time(at: int, code: str) -> None:
    assert code_of(lambda: parse_ear(signer().sign(claims()), PEM, at)) == code


def test_ear_refuses_a_token_from_the_future() -> None:
    token = signer().sign(claims(iat=NOW + 301, exp=NOW + 600))
    assert code_of(lambda: parse_ear(token, PEM, NOW)) == "ear.future"


@pytest.mark.parametrize("at", [NOW + 86_400 * 31])
def test_ear_refuses_a_signers_certificate_that_is_over(at: int) -> None:
    assert code_of(lambda: parse_ear(signer().sign(claims(exp=at + 60)), PEM, at)) == "ear.chain"


@pytest.mark.parametrize(
    "change",
    [{"eat_profile": "other"}, {"exp": "1"}, {"exp": True}, {"iat": None}, {"submods": []}, {"submods": {}},
     {"tee-pubkey": "x"}, {"jti": 1}, {"iss": None}],
)  # fmt: skip
def test_ear_refuses_a_shape(change: dict[str, Any]) -> None:
    assert code_of(lambda: parse_ear(signer().sign(claims(**change)), PEM, NOW)) == "ear.shape"


@pytest.mark.parametrize("alg", ["none", "HS256", "RS256", "ES384"])
def test_ear_refuses_another_algorithm(alg: str) -> None:
    head, body, signature = signer().sign(claims()).split(".")
    header = json.loads(base64.urlsafe_b64decode(head + "==")) | {"alg": alg}
    changed = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    assert code_of(lambda: parse_ear(f"{changed}.{body}.{signature}", PEM, NOW)) == "ear.shape"


@given(
    st.text(max_size=60)
    | st.from_regex(r"[A-Za-z0-9_-]{1,40}\.[A-Za-z0-9_-]{1,40}\.[A-Za-z0-9_-]{1,9}", fullmatch=True)
)
def test_ear_refuses_any_text(token: str) -> None:
    with suppress(MalformedEvidence, AppraisalRefused):
        parse_ear(token, PEM, NOW)
        pytest.fail("read a token in noise")


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda i: (
            st.lists(i)
            | st.dictionaries(
                st.sampled_from(["submods", "cpu0", EVIDENCE, "tdx", "uefi_event_logs", "details", "data"]), i
            )
        ),
        max_leaves=6,
    )
)
def test_ear_parses_or_refuses_any_signed_claims(value: Any) -> None:
    body = value if isinstance(value, dict) else {"submods": value}
    with suppress(MalformedEvidence, AppraisalRefused):
        parse_ear(SIGNER.sign(claims() | body), PEM, NOW)


def with_header(token: str, **changes: Any) -> str:
    head, body, signature = token.split(".")
    header = json.loads(base64.urlsafe_b64decode(head + "==")) | changes
    return f"{base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b'=').decode()}.{body}.{signature}"


@given(
    st.sampled_from(["crit", "b64", "kid", "typ", "cty", "x5c", "zip", "x5t", "jku", "other"]),
    st.recursive(st.none() | st.integers() | st.booleans() | st.text(max_size=5), st.lists, max_leaves=4),
)
def test_ear_refuses_any_changed_header(name: str, value: Any) -> None:
    with pytest.raises((MalformedEvidence, AppraisalRefused)):
        parse_ear(with_header(TOKEN, **{name: value}), PEM, NOW)


def test_ear_refuses_a_critical_header_that_is_no_list() -> None:
    assert code_of(lambda: parse_ear(with_header(TOKEN, crit=5), PEM, NOW)) == "ear.signature"


def test_ear_refuses_a_certificate_of_no_version() -> None:
    der = SIGNER.chain[0].public_bytes(Encoding.DER)
    at = der.index(bytes.fromhex("a003020102"))
    jwk = parts(TOKEN)[0]["jwk"] | {"x5c": [base64.b64encode(der[: at + 4] + b"\x07" + der[at + 5 :]).decode()]}
    assert code_of(lambda: parse_ear(with_header(TOKEN, jwk=jwk), PEM, NOW)) == "ear.shape"


SIGNER = signer()
TOKEN = SIGNER.sign(claims())
