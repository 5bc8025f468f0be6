"""The broker over TLS, by our own client and by one that is not ours."""

import base64
import json
import os
import time

import pytest
from brokers import KEY, MODEL_KEY, PREFIX, Rig, auth_body, cookie_of
from cryptography import x509

from antechamber.broker.admin_token import build_admin_token, load_ed25519
from antechamber.broker.messages import Attestation, ErrorInformation
from antechamber.broker.settings import AdminSettings
from antechamber.errors import BrokerDenied, BrokerUnreachable
from antechamber.evidence.collateral import open_collateral
from antechamber.evidence.ear import parse_ear

pytestmark = pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
PLUGIN = PREFIX + "/external/antechamber"


def bearer(rig: Rig) -> str:
    key = load_ed25519((rig.directory / "admin.key").read_bytes())
    return "Bearer " + build_admin_token(key, AdminSettings(public_key=""))


def test_boot_gets_collateral_certificate_and_key_and_then_a_lease(rig: Rig) -> None:
    guest, kbs = rig.guest(), rig.kbs()
    signer = base64.b64decode((rig.directory / "collateral-signer.b64").read_bytes())
    nonce = os.urandom(32)
    collateral = open_collateral(kbs.collateral(nonce), signer, nonce=nonce, floor=0)
    assert abs(collateral.time - time.time()) < 5
    guest.attest(kbs)
    leaf = x509.load_pem_x509_certificates(kbs.certify(guest.request()))[0]
    assert leaf.public_key() == guest.tls.public_key()
    with guest.tee.open(kbs.release("kbs:///" + MODEL_KEY)) as key:
        assert bytes(key) == KEY
    guest.cap()
    token = guest.attest(kbs)
    assert json.loads(kbs.lease())["tls"] == guest.tls_event
    claims = parse_ear(token, (rig.directory / "token-ca.pem").read_text(), int(time.time()))
    assert (claims.status, claims.policy, claims.tls) == ("affirming", "demo", guest.tls_event)
    assert claims.tee_pubkey == guest.tee.public_jwk
    assert rig.decisions() == [
        ("attested", ""), ("certified", ""), ("released", ""), ("attested", ""), ("leased", ""),
    ]  # fmt: skip


def test_audit_names_evidence_and_rules_of_a_release(rig: Rig) -> None:
    guest, kbs = rig.guest(), rig.kbs()
    guest.attest(kbs)
    kbs.release(MODEL_KEY)
    released = rig.broker.audit.records()[-1]
    assert (released.decision, released.resource, released.peer) == ("released", MODEL_KEY, "127.0.0.1")
    assert set(json.loads(released.evidence)) == {"quote", "event_log", "additional"}
    assert released.policy == rig.broker.rules.current().digest
    assert len(released.session) == 32


def test_auth_answers_as_trustee_does(rig: Rig) -> None:
    status, headers, body = rig.raw("POST", PREFIX + "/auth", auth_body())
    assert (status, headers["content-type"]) == (200, "application/json")
    assert json.loads(body)["extra-params"] == ""
    assert headers["set-cookie"].startswith("kbs-session-id=")
    assert "; Expires=" in headers["set-cookie"]
    assert "Path" not in headers["set-cookie"]


def test_auth_names_the_version_it_expects(rig: Rig) -> None:
    status, _, body = rig.raw("POST", PREFIX + "/auth", auth_body(version="0.1.1"))
    said = ErrorInformation.parse(body)
    assert status == 401
    assert said.detail == (
        "Attestation error: RCAR handshake Auth failed: "
        "KBS Client Protocol Version Mismatch: expect =0.4.0 while the request is 0.1.1"
    )


def test_background_check_client_gets_401_first_then_the_key(rig: Rig) -> None:
    """A CoCo client's first GET has no session, and it counts on this answer."""
    status, _, body = rig.raw("GET", f"{PREFIX}/resource/{MODEL_KEY}")
    assert (status, ErrorInformation.parse(body).variant) == (401, "TokenNotFound")
    guest = rig.guest()
    _, headers, body = rig.raw("POST", PREFIX + "/auth", auth_body())
    nonce, cookie = json.loads(body)["nonce"], cookie_of(headers)
    sent = Attestation.of(nonce, guest.tee.public_jwk, guest.evidence(nonce), None).build()
    status, again, body = rig.raw("POST", PREFIX + "/attest", sent, Cookie=cookie)
    assert (status, cookie_of(again)) == (200, cookie)
    assert rig.raw("POST", PREFIX + "/attest", b"", Cookie=cookie)[2] == body  # the old token, at once
    status, headers, body = rig.raw("GET", f"{PREFIX}/resource/{MODEL_KEY}", Cookie=cookie)
    assert (status, headers["content-type"]) == (200, "application/json")
    with guest.tee.open(body) as key:
        assert bytes(key) == KEY


def test_passport_client_shows_the_token_instead(rig: Rig) -> None:
    guest = rig.guest()
    token = guest.attest(rig.kbs())
    for cookie in ({}, {"Cookie": "kbs-session-id=" + "0" * 32}):
        status, _, body = rig.raw("GET", f"{PREFIX}/resource/default/any/1", Authorization=f"Bearer {token}", **cookie)
        assert status == 200
        with guest.tee.open(body) as key:
            assert bytes(key) == KEY


def test_resource_of_any_phase_is_released_again_and_after_the_boot(rig: Rig) -> None:
    guest, kbs = rig.guest(), rig.kbs()
    guest.attest(kbs)
    kbs.release("default/any/1")
    kbs.release("default/any/1")
    guest.cap()
    guest.attest(kbs)
    kbs.release("default/any/1")


def test_missing_resource_is_404_and_spends_nothing(rig: Rig) -> None:
    guest, kbs = rig.guest(), rig.kbs()
    guest.attest(kbs)
    with pytest.raises(BrokerDenied) as refused:
        kbs.release("default/missing/1")
    assert refused.value.code == "broker.resource"
    assert "resource.missing" in refused.value.detail
    kbs.release(MODEL_KEY)


def test_resource_without_a_rule_is_denied(rig: Rig) -> None:
    guest, kbs = rig.guest(), rig.kbs()
    guest.attest(kbs)
    with pytest.raises(BrokerDenied) as refused:
        kbs.release("default/unruled/1")
    assert "PolicyDeny: Access denied by policy: rules.none" in refused.value.detail


@pytest.mark.parametrize("rule", ["certificates", "lease"])
def test_certificate_and_lease_need_a_rule(rig: Rig, rule: str) -> None:
    rig.rewrite(**{rule: None})
    guest, kbs = rig.guest(), rig.kbs()
    guest.cap()
    guest.attest(kbs)
    with pytest.raises(BrokerDenied) as refused:
        kbs.lease() if rule == "lease" else kbs.certify(guest.request())
    assert "rules.none" in refused.value.detail


def test_rules_that_do_not_parse_refuse_everything(rig: Rig) -> None:
    guest, kbs = rig.guest(), rig.kbs()
    guest.attest(kbs)
    (rig.directory / "policy.yaml").write_text("")
    for ask in (lambda: kbs.release(MODEL_KEY), lambda: kbs.certify(guest.request()), lambda: guest.attest(kbs)):
        with pytest.raises(BrokerUnreachable) as refused:  # no verdict on the guest
            ask()
        assert (refused.value.code, "rules.type" in refused.value.detail) == ("broker.unavailable", True)
    assert [r for r in rig.decisions() if r[0] == "refused"] == [("refused", "rules.type")] * 3


def test_init_data_must_be_what_mr_config_id_says(rig: Rig) -> None:
    guest, kbs = rig.guest(), rig.kbs()
    nonce = kbs.challenge()
    text = 'version = "0.1.0"\nalgorithm = "sha384"\n[data]\n'
    with pytest.raises(BrokerDenied) as refused:
        kbs.attest(nonce, guest.tee.public_jwk, guest.evidence(nonce), text)
    assert "initdata.digest" in refused.value.detail


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/kbs/v0/auth"), ("GET", "/kbs/v0/nothing/a"), ("PUT", "/kbs/v0/resource-policy"), ("GET", "/"),
     ("GET", "/kbs/v0/external/other/x"), ("GET", "/metrics")],
)  # fmt: skip
def test_unknown_paths_are_404_with_the_error_object(rig: Rig, method: str, path: str) -> None:
    status, _, body = rig.raw(method, path)
    assert (status, ErrorInformation.parse(body).variant) == (404, "PluginNotFound")


def test_healthz(rig: Rig) -> None:
    assert rig.raw("GET", "/healthz")[0] == 200


@pytest.mark.parametrize("nonce", ["", "00", "A" * 64, "0" * 63, "0" * 65, "g" * 64])
def test_collateral_refuses_a_nonce(rig: Rig, nonce: str) -> None:
    status, _, body = rig.raw("GET", f"{PLUGIN}/collateral?nonce={nonce}")
    assert status == 401
    assert "collateral.nonce" in ErrorInformation.parse(body).detail


def test_collateral_is_read_again_when_it_changes(rig: Rig) -> None:
    path = rig.directory / "collateral" / "simulated.json"
    kept = path.read_text()
    path.write_text("{}")  # left out, and logged
    with pytest.raises(BrokerUnreachable) as refused:
        rig.guest().attest(rig.kbs())
    assert "collateral.fmspc" in refused.value.detail
    path.write_text(kept)
    rig.guest().attest(rig.kbs())


def test_admin_puts_and_deletes(rig: Rig) -> None:
    path, headers = f"{PREFIX}/resource/default/new/1", {"Authorization": bearer(rig)}
    assert rig.raw("POST", path, b"value", **headers)[0] == 200
    assert rig.raw("DELETE", path, **headers)[0] == 200
    assert rig.raw("DELETE", path, **headers)[0] == 404
    assert rig.decisions() == [("stored", ""), ("deleted", ""), ("refused", "resource.missing")]


@pytest.mark.parametrize(
    ("method", "path", "variant"),
    [
        ("POST", "/attestation-policy", "PolicyEngineError"),
        ("POST", "/resource-policy", "PolicyEngineError"),
        ("POST", "/reference-value", "RvpsError"),
        ("GET", "/reference-value/mr_td", "RvpsError"),
    ],
)
def test_policies_and_reference_values_are_not_on_the_network(rig: Rig, method: str, path: str, variant: str) -> None:
    status, _, body = rig.raw(method, PREFIX + path, b"{}", Authorization=bearer(rig))
    said = ErrorInformation.parse(body)
    assert (status, said.variant, "policy.file" in said.detail) == (401, variant, True)
    status, _, body = rig.raw(method, PREFIX + path, b"{}")
    said = ErrorInformation.parse(body)
    assert (status, said.variant) == (401, "AdminAuthAccess")
    assert said.detail.startswith(f"admin access denied for endpoint {PREFIX}{path}: admin.token: ")


def test_owner_lists_the_policies_and_nobody_else(rig: Rig) -> None:
    status, headers, body = rig.raw("GET", PREFIX + "/resource-policy", Authorization=bearer(rig))
    assert (status, headers["content-type"], json.loads(body)) == (200, "application/json", ["demo"])
    assert rig.raw("GET", PREFIX + "/resource-policy")[0] == 401


def test_resource_knows_no_other_method(rig: Rig) -> None:
    status, _, body = rig.raw("PUT", f"{PREFIX}/resource/{MODEL_KEY}", b"x", Authorization=bearer(rig))
    said = ErrorInformation.parse(body)
    assert (status, said.variant) == (401, "PluginInternalError")
    assert "kbs.method" in said.detail


def test_lost_session_is_a_token_that_is_not_found(rig: Rig) -> None:
    """Trustee tries the cookie first and the token then; without either nothing is found."""
    _, headers, _ = rig.raw("POST", PREFIX + "/auth", auth_body())
    for cookie in (cookie_of(headers), "kbs-session-id=" + "0" * 32):
        status, _, body = rig.raw("GET", f"{PREFIX}/resource/{MODEL_KEY}", Cookie=cookie)
        assert (status, ErrorInformation.parse(body).variant) == (401, "TokenNotFound")


def test_token_carries_what_trustee_reads(rig: Rig) -> None:
    guest = rig.guest()
    token = guest.attest(rig.kbs())
    payload = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    cpu = payload["submods"]["cpu0"]
    evidence = cpu["ear.veraison.annotated-evidence"]
    assert payload["tee-pubkey"] == evidence["runtime_data_claims"]["tee-pubkey"] == guest.tee.public_jwk
    assert payload["exp"] - payload["iat"] == 300
    assert cpu["ear.trustworthiness-vector"]["hardware"] == 2
    assert evidence["tdx"]["quote"]["body"]["rtmr_3"] == guest.machine.read("rtmr3").hex()
    assert evidence["tdx"]["quote"]["header"]["tee_type"] == "81000000"
    assert evidence["tdx"]["td_attributes"] == {
        "debug": False, "septve_disable": True, "protection_keys": False, "key_locker": False, "perfmon": False,
    }  # fmt: skip
    assert "gpu0" in payload["submods"]
    assert len(token) < 64 << 10
