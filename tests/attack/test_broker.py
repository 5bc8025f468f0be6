"""Threats against the embedded broker and its client: one test each, named by the code that refuses it."""

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from brokers import MODEL_KEY, PREFIX, Guest, Rig, auth_body, cookie_of, running
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from antechamber.broker.admin_token import build_admin_token
from antechamber.broker.authority import Authority
from antechamber.broker.ear import TokenSigner
from antechamber.broker.jwe import TeeKey
from antechamber.broker.kbs import Kbs
from antechamber.broker.messages import Attestation, ErrorInformation
from antechamber.broker.settings import AdminSettings
from antechamber.errors import BrokerDenied, BrokerUnreachable
from antechamber.evidence.composite import CompositeEvidence, additional_evidence, report_data
from antechamber.evidence.ear import parse_ear

pytestmark = pytest.mark.filterwarnings("ignore:EdDSA is deprecated")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with running(tmp_path / "broker") as rig:
        yield rig


def refused(call: Callable[[], object], code: str, cause: str) -> None:
    """The client's code, and the broker's own in its words."""
    with pytest.raises(BrokerDenied) as error:
        call()
    assert error.value.code == code, error.value
    assert f"{cause}:" in error.value.detail, error.value


def send(kbs: Kbs, guest: Guest, nonce: str, evidence: CompositeEvidence) -> str:
    return kbs.attest(nonce, guest.tee.public_jwk, evidence, None)


# -- the session


def test_replayed_nonce_of_another_session_is_refused(rig: Rig) -> None:
    guest, kbs = rig.guest(), rig.kbs()
    nonce = kbs.challenge()
    evidence = guest.evidence(nonce)
    send(kbs, guest, nonce, evidence)
    other = rig.kbs()
    other.challenge()
    refused(lambda: send(other, guest, nonce, evidence), "broker.attest", "session.nonce")


def test_replayed_evidence_over_another_nonce_is_refused(rig: Rig) -> None:
    guest, kbs = rig.guest(), rig.kbs()
    old = guest.evidence(kbs.challenge())
    nonce = kbs.challenge()
    refused(lambda: send(kbs, guest, nonce, old), "broker.attest", "quote.report-data")


def test_evidence_of_another_key_is_refused(rig: Rig) -> None:
    """A host that relays the guest's Evidence and puts its own key beside it."""
    guest, kbs = rig.guest(), rig.kbs()
    nonce = kbs.challenge()
    evidence, mine = guest.evidence(nonce), TeeKey.generate()
    refused(lambda: kbs.attest(nonce, mine.public_jwk, evidence, None), "broker.attest", "quote.report-data")


def test_spent_session_releases_no_second_key(rig: Rig) -> None:
    guest, kbs = rig.guest(), rig.kbs()
    guest.attest(kbs)
    kbs.release(MODEL_KEY)
    refused(lambda: kbs.release(MODEL_KEY), "broker.resource", "session.spent")
    refused(lambda: kbs.release("default/any/1"), "broker.resource", "session.spent")
    refused(lambda: kbs.certify(guest.request()), "broker.denied", "session.spent")
    assert rig.decisions()[1:] == [("released", "")] + [("refused", "session.spent")] * 3


def test_spent_session_spends_its_token_and_the_other_way_round(rig: Rig) -> None:
    guest, kbs = rig.guest(), rig.kbs()
    token = guest.attest(kbs)
    kbs.release(MODEL_KEY)
    status, _, body = rig.raw("GET", f"{PREFIX}/resource/{MODEL_KEY}", Authorization=f"Bearer {token}")
    assert status == 401
    assert "session.spent" in ErrorInformation.parse(body).detail
    guest = rig.guest()  # another boot
    token = guest.attest(kbs)
    assert rig.raw("GET", f"{PREFIX}/resource/{MODEL_KEY}", Authorization=f"Bearer {token}")[0] == 200
    refused(lambda: kbs.release(MODEL_KEY), "broker.resource", "session.spent")


def test_spent_session_is_not_attested_again(rig: Rig) -> None:
    guest, kbs = rig.guest(), rig.kbs()
    nonce = kbs.challenge()
    evidence = guest.evidence(nonce)
    send(kbs, guest, nonce, evidence)
    kbs.release(MODEL_KEY)
    refused(lambda: send(kbs, guest, nonce, evidence), "broker.attest", "session.spent")


def test_two_requests_at_once_get_one_key(rig: Rig) -> None:
    guest = rig.guest()
    token = guest.attest(rig.kbs())
    answers: list[int] = []
    start = threading.Barrier(6)

    def ask() -> None:
        start.wait()
        answers.append(rig.raw("GET", f"{PREFIX}/resource/{MODEL_KEY}", Authorization=f"Bearer {token}")[0])

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200] + [401] * 5


def test_session_that_never_attested_gets_nothing(rig: Rig) -> None:
    guest, kbs = rig.guest(), rig.kbs()
    kbs.challenge()
    for ask in (lambda: kbs.release(MODEL_KEY), lambda: kbs.certify(guest.request()), kbs.lease):
        with pytest.raises(BrokerUnreachable) as error:  # TokenNotFound: no verdict on the guest, and nothing released
            ask()
        assert error.value.code == "broker.session"
        assert "TokenNotFound: Attestation Token not found: session.unattested" in error.value.detail


def test_guessed_session_is_refused(rig: Rig) -> None:
    status, _, body = rig.raw("GET", f"{PREFIX}/resource/{MODEL_KEY}", Cookie="kbs-session-id=" + "0" * 32)
    assert status == 401
    assert "session.unknown" in ErrorInformation.parse(body).detail


def test_token_of_another_broker_is_refused(rig: Rig, tmp_path: Path) -> None:
    token = rig.guest().attest(rig.kbs())
    with running(tmp_path / "other") as other:
        status, _, body = other.raw("GET", f"{PREFIX}/resource/{MODEL_KEY}", Authorization=f"Bearer {token}")
    assert status == 401
    assert "ear.chain" in ErrorInformation.parse(body).detail


def test_forged_token_is_refused(rig: Rig) -> None:
    token = rig.guest().attest(rig.kbs())
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    key, ca = ec.generate_private_key(ec.SECP256R1()), Authority.create("Antechamber token CA", now=int(time.time()))
    leaf = ca.issue(key.public_key(), "x", names=(), usage=(), now=int(time.time()), days=1)
    for signer, code in (
        (TokenSigner(key, [leaf]), "ear.chain"),
        (TokenSigner(key, rig.broker.tokens.chain), "ear.signature"),
    ):
        status, _, body = rig.raw(
            "GET", f"{PREFIX}/resource/{MODEL_KEY}", Authorization=f"Bearer {signer.sign(claims)}"
        )
        assert status == 401
        assert code in ErrorInformation.parse(body).detail


# -- the Evidence


@pytest.mark.parametrize("tee", ["sample", "sampledevice", "snp", "sgx", "az-tdx-vtpm", ""])
def test_sample_and_every_other_tee_is_refused(rig: Rig, tee: str) -> None:
    status, headers, body = rig.raw("POST", PREFIX + "/auth", auth_body(tee))
    assert status == 401
    assert "set-cookie" not in headers
    assert "broker.tee" in ErrorInformation.parse(body).detail
    assert rig.decisions() == [("refused", "broker.tee")]


def test_sample_evidence_in_a_tdx_session_is_refused(rig: Rig) -> None:
    guest = rig.guest()
    _, headers, body = rig.raw("POST", PREFIX + "/auth", auth_body())
    nonce = json.loads(body)["nonce"]
    digest = base64.b64encode(report_data(nonce, guest.tee.public_jwk, "")[:48]).decode()
    sent = Attestation(nonce, guest.tee.public_jwk, {"svn": "1", "report_data": digest}, "").build()
    status, _, body = rig.raw("POST", PREFIX + "/attest", sent, Cookie=cookie_of(headers))
    assert status == 401
    assert "evidence.shape" in ErrorInformation.parse(body).detail


def test_debug_td_is_refused(rig: Rig) -> None:
    refused(lambda: rig.guest(debug=True).attest(rig.kbs()), "broker.attest", "tdx.debug")


def test_td_of_another_build_is_attested_but_gets_nothing(rig: Rig) -> None:
    guest, kbs = rig.guest(mr_td="ab" * 48), rig.kbs()
    token = guest.attest(kbs)
    assert parse_ear(token, rig.broker.token_ca, int(time.time())).status == "contraindicated"
    refused(lambda: kbs.certify(guest.request()), "broker.denied", "appraisal.mr-td")
    refused(lambda: kbs.release(MODEL_KEY), "broker.resource", "appraisal.mr-td")


def test_guest_that_measured_another_model_gets_no_key(rig: Rig) -> None:
    guest, kbs = rig.guest(), rig.kbs()
    guest.machine.reset()
    guest.log = b""
    any_ = "sha384:" + "22" * 48
    for name in ("config", "init-data", "engine"):
        guest.extend(name, any_)
    guest.extend("model", "sha256:" + "33" * 32)
    for name, content in (("gpu", any_), ("tls", guest.tls_event), ("receipt", any_)):
        guest.extend(name, content)
    guest.attest(kbs)
    refused(lambda: kbs.release(MODEL_KEY), "broker.resource", "appraisal.event-model")


def test_guest_that_hides_its_log_is_refused(rig: Rig) -> None:
    guest, kbs = rig.guest(), rig.kbs()
    nonce = kbs.challenge()
    seen = guest.evidence(nonce)
    hidden = CompositeEvidence(seen.quote, None, seen.additional)
    refused(lambda: send(kbs, guest, nonce, hidden), "broker.attest", "eventlog.missing")


def test_gpu_evidence_over_an_older_challenge_is_refused(rig: Rig) -> None:
    guest, kbs = rig.guest(), rig.kbs()
    old = additional_evidence(guest.devices(kbs.challenge()))
    nonce = kbs.challenge()
    fresh = guest.evidence(nonce)
    quote = guest.machine.quote(report_data(nonce, guest.tee.public_jwk, old))
    relayed = CompositeEvidence(quote, fresh.event_log, old)
    refused(lambda: send(kbs, guest, nonce, relayed), "broker.attest", "gpu.nonce")


def test_gpu_evidence_swapped_after_the_quote_is_refused(rig: Rig) -> None:
    guest, other, kbs = rig.guest(), rig.guest(gpus=2), rig.kbs()
    nonce = kbs.challenge()
    seen = guest.evidence(nonce)
    other.tee = guest.tee
    swapped = CompositeEvidence(seen.quote, seen.event_log, additional_evidence(other.devices(nonce)[1:]))
    refused(lambda: send(kbs, guest, nonce, swapped), "broker.attest", "quote.report-data")


def test_guest_without_gpus_gets_no_key(rig: Rig) -> None:
    guest, kbs = rig.guest(), rig.kbs()
    nonce = kbs.challenge()
    quote = guest.machine.quote(report_data(nonce, guest.tee.public_jwk, ""))
    send(kbs, guest, nonce, CompositeEvidence(quote, guest.evidence(nonce).event_log, ""))
    refused(lambda: kbs.release(MODEL_KEY), "broker.resource", "appraisal.gpu-count")


# -- what Evidence earns


def test_key_is_refused_after_released(rig: Rig) -> None:
    guest, kbs = rig.guest(), rig.kbs()
    guest.cap()
    guest.attest(kbs)
    refused(lambda: kbs.release(MODEL_KEY), "broker.resource", "rules.phase")
    assert rig.decisions()[-1] == ("refused", "rules.phase")


def test_cap_for_another_tls_key_earns_no_lease(rig: Rig) -> None:
    guest, kbs = rig.guest(), rig.kbs()
    guest.extend("released", "sha384:" + "44" * 48)
    guest.attest(kbs)
    refused(kbs.lease, "broker.denied", "appraisal.event-released")


def test_lease_is_refused_before_released(rig: Rig) -> None:
    guest, kbs = rig.guest(), rig.kbs()
    guest.attest(kbs)
    refused(kbs.lease, "broker.denied", "rules.phase")


def test_certificate_for_a_key_not_in_the_log_is_refused(rig: Rig) -> None:
    guest, kbs = rig.guest(), rig.kbs()
    guest.attest(kbs)
    other = ec.generate_private_key(ec.SECP256R1())
    refused(lambda: kbs.certify(guest.request(other)), "broker.denied", "certificate.key")


def test_certificate_for_a_foreign_name_is_refused(rig: Rig) -> None:
    guest, kbs = rig.guest(), rig.kbs()
    guest.attest(kbs)
    refused(lambda: kbs.certify(guest.request(names=("bank.example.org",))), "broker.denied", "certificate.names")


# -- administration


def test_admin_token_of_another_key_is_refused(rig: Rig) -> None:
    token = build_admin_token(Ed25519PrivateKey.generate(), AdminSettings(public_key=""))
    for method, body in (("POST", b"mine"), ("DELETE", b"")):
        status, _, answer = rig.raw(method, f"{PREFIX}/resource/{MODEL_KEY}", body, Authorization=f"Bearer {token}")
        assert status == 401
        assert ErrorInformation.parse(answer).variant == "AdminAuthAccess"
    assert rig.decisions() == [("refused", "admin.token")] * 2


def test_attestation_token_administers_nothing(rig: Rig) -> None:
    token = rig.guest().attest(rig.kbs())
    status, _, _ = rig.raw("POST", f"{PREFIX}/resource/{MODEL_KEY}", b"mine", Authorization=f"Bearer {token}")
    assert status == 401


def test_admin_token_reads_nothing(rig: Rig) -> None:
    from antechamber.broker.admin_token import load_ed25519

    key = load_ed25519((rig.directory / "admin.key").read_bytes())
    token = build_admin_token(key, AdminSettings(public_key=""))
    assert rig.raw("GET", f"{PREFIX}/resource/{MODEL_KEY}", Authorization=f"Bearer {token}")[0] == 401


# -- the wire


def test_broker_of_another_ca_is_not_spoken_to(rig: Rig, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(Authority.create("Antechamber broker CA", now=int(time.time())).pem()[0])
    with pytest.raises(BrokerUnreachable) as error:
        rig.kbs(ca=other).challenge()
    assert error.value.code == "broker.tls"


def test_token_of_100_kilobytes_in_a_header_is_read(rig: Rig) -> None:
    status, _, body = rig.raw("GET", f"{PREFIX}/resource/{MODEL_KEY}", Authorization="Bearer " + "a" * (128 << 10))
    assert status == 401
    assert "ear.shape" in ErrorInformation.parse(body).detail


def test_oversized_head_is_refused(rig: Rig) -> None:
    status, _, body = rig.raw("GET", f"{PREFIX}/resource/{MODEL_KEY}", Authorization="Bearer " + "a" * (1 << 20))
    assert status == 400
    assert b"Traceback" not in body


def test_oversized_bodies_are_refused(rig: Rig) -> None:
    status, _, body = rig.raw("POST", PREFIX + "/auth", b" " * (65 << 10))
    assert (status, "kbs.size" in ErrorInformation.parse(body).detail) == (401, True)
    guest, kbs = rig.guest(), rig.kbs()
    nonce = kbs.challenge()
    huge = CompositeEvidence(b"q", None, "x" * (9 << 20))
    with pytest.raises((BrokerDenied, BrokerUnreachable)):
        send(kbs, guest, nonce, huge)
    assert rig.raw("GET", "/healthz")[0] == 200


def test_attestation_without_a_session_is_refused_before_its_body(rig: Rig) -> None:
    status, _, body = rig.raw("POST", PREFIX + "/attest", b"{}")
    assert status == 401
    assert "session.none" in ErrorInformation.parse(body).detail


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"version":"0.4.0"}', b"\xff" * 100, b"[" * 5000])
def test_noise_is_refused_without_a_trace(rig: Rig, body: bytes) -> None:
    for path in ("/auth", "/attest"):
        _, headers, _ = rig.raw("POST", PREFIX + "/auth", auth_body())
        status, _, answer = rig.raw("POST", PREFIX + path, body, Cookie=cookie_of(headers))
        assert status == 401
        ErrorInformation.parse(answer)
