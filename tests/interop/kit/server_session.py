"""What a server must do until a session is attested: versions, /auth, /attest, init-data."""

import base64
import hashlib
import json
import re

from interop.kit.attesters import changed
from interop.kit.core import Kit, asks, not_applicable
from interop.kit.jose import TeeKey
from interop.kit.wire import COOKIE, PREFIX

AUTH = "Attestation error: RCAR handshake Auth failed: "
ATTEST = "Attestation error: RCAR handshake Attest failed"


@asks("version.exact")
def version_exact(kit: Kit) -> None:
    kit.ok(kit.post("/auth", kit.request()))


@asks("version.mismatch")
def version_mismatch(kit: Kit) -> None:
    for version in ("0.1.1", "0.2.0", "0.3.9", "0.4.1", "1.0.0"):
        answer = kit.post("/auth", kit.request(version=version))
        words = f"KBS Client Protocol Version Mismatch: expect =0.4.0 while the request is {version}"
        kit.refused(answer, "AttestationError", AUTH + words, step=version)


@asks("auth.challenge")
def auth_challenge(kit: Kit) -> None:
    nonces = set()
    for _ in range(4):
        answer = kit.ok(kit.post("/auth", kit.request()))
        value = answer.json()
        kit.hold("content-type", (answer.header("content-type") or "").startswith("application/json"), answer.headers)
        kit.hold("extra-params", value["extra-params"] == "", value["extra-params"])
        nonce = value["nonce"]
        whole = re.fullmatch(r"[A-Za-z0-9+/]{43}=", nonce) and len(base64.b64decode(nonce)) == 32
        kit.hold("nonce", bool(whole), nonce)
        nonces.add(nonce)
    kit.hold("fresh", len(nonces) == 4, nonces)


@asks("auth.cookie")
def auth_cookie(kit: Kit) -> None:
    header = kit.post("/auth", kit.request()).header("set-cookie") or ""
    pair, *attributes = (part.strip() for part in header.split(";"))
    kit.hold("value", bool(re.fullmatch(COOKIE + "=[0-9a-f]{32}", pair)), pair)
    names = [a.partition("=")[0].lower() for a in attributes]
    kit.hold("attributes", names == ["expires"], header)
    date = r"Expires=(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d{2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} GMT"
    kit.hold("expires", bool(re.fullmatch(date, attributes[0])), header)


@asks("auth.members")
def auth_members(kit: Kit) -> None:
    for name in ("version", "tee", "extra-params"):
        request = kit.request()
        del request[name]
        kit.refused(kit.post("/auth", request), "AttestationError", AUTH, step=name)


@asks("auth.malformed")
def auth_malformed(kit: Kit) -> None:
    for body in (b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"version":1,"tee":"tdx","extra-params":""}'):
        kit.refused(kit.post("/auth", body), "AttestationError", AUTH, step=repr(body))


@asks("auth.extra-params")
def auth_extra_params(kit: Kit) -> None:
    hashes = {"supported-hash-algorithms": ["sha256", "sha384", "sha512", "sm3"]}
    for extra in ("", {}, hashes, None, [1]):
        kit.ok(kit.post("/auth", kit.request(**{"extra-params": extra})), step=json.dumps(extra))


@asks("auth.content-type")
def auth_content_type(kit: Kit) -> None:
    body = json.dumps(kit.request()).encode()
    for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded", "nonsense"):
        kit.ok(kit.wire.send("POST", PREFIX + "/auth", body, {"Content-Type": kind}), step=kind)
    kit.ok(kit.wire.send("POST", PREFIX + "/auth", body), step="none")


@asks("auth.tee")
def auth_tee(kit: Kit) -> None:
    kit.ok(kit.post("/auth", kit.request(tee="tdx")), step="tdx")
    kit.ok(kit.post("/auth", kit.request(tee="sample")), step="sample")
    for unknown in ("", "TDX", "enclave"):
        kit.refused(kit.post("/auth", kit.request(tee=unknown)), "AttestationError", AUTH, step=unknown or "empty")


@asks("attest.answer")
def attest_answer(kit: Kit) -> None:
    session = kit.open()
    answer = kit.ok(kit.attest(session))
    kit.hold("content-type", (answer.header("content-type") or "").startswith("application/json"), answer.headers)
    kit.hold("cookie", answer.cookie() == session.cookie, answer.header("set-cookie"))
    token = answer.json()["token"]
    kit.hold("token", bool(re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", token, re.ASCII)), token[:80])


@asks("attest.no-cookie")
def attest_no_cookie(kit: Kit) -> None:
    kit.refused(kit.post("/attest", kit.evidence(kit.open())), "AttestationError", ATTEST)


@asks("attest.unknown-session")
def attest_unknown_session(kit: Kit) -> None:
    session = kit.open()
    body = kit.evidence(session)
    length = len(session.cookie.partition("=")[2])
    for value in ("0" * length, "x", "0" * 4000, session.cookie.partition("=")[2].upper() + "0"):
        answer = kit.post("/attest", body, Cookie=f"{COOKIE}={value}")
        kit.refused(answer, "AttestationError", ATTEST, step=value[:20])


@asks("attest.malformed")
def attest_malformed(kit: Kit) -> None:
    session = kit.open()
    body = kit.evidence(session)
    without = [{k: v for k, v in body.items() if k != name} for name in ("runtime-data", "tee-evidence")]
    for broken in (b"", b"{", b"[]", *without, body | {"tee-evidence": {"primary_evidence": None}}):
        kit.refused(kit.attest(session, broken), "AttestationError", ATTEST, step=repr(broken)[:30])


@asks("attest.wrong-nonce")
def attest_wrong_nonce(kit: Kit) -> None:
    session, other = kit.open(), kit.open()
    body = kit.evidence(session, nonce=other.nonce)
    body["runtime-data"]["nonce"] = other.nonce
    kit.refused(kit.attest(session, body), "AttestationError", ATTEST)


@asks("attest.binding")
def attest_binding(kit: Kit) -> None:
    session = kit.open()
    stolen = kit.evidence(session, jwk=TeeKey.generate().jwk)
    kit.refused(kit.attest(session, stolen), "AttestationError", ATTEST, step="another key's evidence")
    old = kit.evidence(session, nonce=kit.open().nonce)
    kit.refused(kit.attest(session, old), "AttestationError", ATTEST, step="another nonce's evidence")
    tampered = kit.evidence(session)
    tampered["tee-evidence"]["primary_evidence"] = changed(tampered["tee-evidence"]["primary_evidence"])
    kit.refused(kit.attest(session, tampered), "AttestationError", ATTEST, step="another digest")
    other = kit.evidence(session)
    other["tee-evidence"]["additional_evidence"] += " "
    kit.refused(kit.attest(session, other), "AttestationError", ATTEST, step="other devices' evidence")


@asks("attest.retry")
def attest_retry(kit: Kit) -> None:
    session = kit.open()
    wrong = kit.evidence(session, jwk=TeeKey.generate().jwk)
    kit.refused(kit.attest(session, wrong), "AttestationError", ATTEST)
    kit.ok(kit.attest(session), step="again")


@asks("attest.again")
def attest_again(kit: Kit) -> None:
    session = kit.open()
    body = kit.evidence(session)
    first, second = kit.ok(kit.attest(session, body)), kit.ok(kit.attest(session, body))
    kit.hold("token", first.json()["token"] == second.json()["token"], "another token")
    kit.hold("cookie", second.cookie() == session.cookie, second.header("set-cookie"))
    body["tee-evidence"]["primary_evidence"] = changed(body["tee-evidence"]["primary_evidence"])
    third = kit.ok(kit.attest(session, body), step="evidence is not looked at")
    kit.hold("old token", third.json()["token"] == first.json()["token"], "another token")


@asks("attest.order")
def attest_order(kit: Kit) -> None:
    session, _ = kit.attested()
    kit.refused(kit.attest(session, b"{"), "AttestationError", ATTEST, step="malformed")


@asks("attest.unknown-member")
def attest_unknown_member(kit: Kit) -> None:
    session = kit.open()
    kit.ok(kit.attest(session, kit.evidence(session) | {"x-kit": 1}), step="attest")


@asks("attest.pubkey-member")
def attest_pubkey_member(kit: Kit) -> None:
    """A server hashes what it reads, so the digests differ; whether it says so by name is its own matter."""
    session = kit.open()
    session.key.jwk["kid"] = "1"
    kit.refused(kit.attest(session), "AttestationError", ATTEST)


@asks("attest.padded")
def attest_padded(kit: Kit) -> None:
    session = kit.open()
    body = kit.evidence(session)
    primary = body["tee-evidence"]["primary_evidence"]
    if "quote" not in primary:
        not_applicable("this attester has no quote")
    primary["quote"] = base64.b64encode(base64.b64decode(primary["quote"]) + bytes(70)).decode()
    kit.ok(kit.attest(session, body))


@asks("attest.large")
def attest_large(kit: Kit) -> None:
    session = kit.open()
    body = json.dumps(kit.evidence(session)).encode()
    room = (2 << 20) - 4096 - len(body)
    if room < 0:
        not_applicable(f"this evidence alone has {len(body)} bytes")
    kit.ok(kit.attest(session, b" " * room + body))


INIT_DATA = "version = \"0.1.0\"\nalgorithm = \"%s\"\n\n[data]\n\"aa.toml\" = '''\nx = 1\n'''\n"


@asks("init-data.absent")
def init_data_absent(kit: Kit) -> None:
    session = kit.open()
    body = kit.evidence(session)
    del body["init-data"]
    kit.ok(kit.attest(session, body))


@asks("init-data.bound")
def init_data_bound(kit: Kit) -> None:
    for algorithm in ("sha256", "sha384", "sha512"):
        text = INIT_DATA % algorithm
        digest = hashlib.new(algorithm, text.encode()).digest()[:48].ljust(48, b"\0")
        if (launched := kit.attester.with_init_data(digest)) is None:
            not_applicable("this guest's MRCONFIGID is not ours to set")
        session = kit.open()
        body = kit.evidence(session, launched) | {"init-data": {"format": "toml", "body": text}}
        answer = kit.ok(kit.attest(session, body), step=algorithm)
        payload = answer.json()["token"].split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        evidence = claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"]
        if kit.attester.tee == "tdx":
            kit.hold("digest", evidence["init_data"] == digest.hex(), evidence["init_data"])
        kit.hold("claims", isinstance(evidence["init_data_claims"], dict), evidence["init_data_claims"])


@asks("init-data.mismatch")
def init_data_mismatch(kit: Kit) -> None:
    if kit.attester.tee == "sample":
        not_applicable("the sample verifier compares no init-data")
    session = kit.open()
    body = kit.evidence(session) | {"init-data": {"format": "toml", "body": INIT_DATA % "sha384"}}
    kit.refused(kit.attest(session, body), "AttestationError", ATTEST)


@asks("init-data.format")
def init_data_format(kit: Kit) -> None:
    session = kit.open()
    for value in ({"format": "json", "body": "{}"}, {"format": "toml", "body": "= not toml"}, {"format": "toml"}, "x"):
        body = kit.evidence(session) | {"init-data": value}
        kit.refused(kit.attest(session, body), "AttestationError", ATTEST, step=str(value))
