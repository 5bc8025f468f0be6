"""What a server must do with an attested session: resources, sealing, tokens, plugins."""

import base64
import json
import time
from typing import Any

from interop.kit.core import Kit, asks, not_applicable
from interop.kit.jose import Kind, TeeKey, b64u, coco_header, tee_pubkey, verify_token
from interop.kit.server_session import ATTEST
from interop.kit.wire import COOKIE, PREFIX

EVIDENCE = "ear.veraison.annotated-evidence"
HEAD = (128 << 10) - 4096  # bytes: Trustee's limit, less what the rest of the head takes


def opens(kit: Kit, kind: Kind) -> None:
    """Two answers under one key: each opens to the same value, under another content key."""
    session, _ = kit.attested(kind)
    plain, seen = set(), set()
    for _ in range(2):
        answer = kit.ok(kit.resource(Cookie=session.cookie), step="resource")
        header, value = session.key.open(answer.body)
        kit.hold("header", header == coco_header(header), header)
        plain.add(value)
        seen.add((answer.json()["encrypted_key"], answer.json()["iv"]))
    kit.hold("same value", len(plain) == 1 and all(plain), f"{len(plain)} values")
    kit.hold("fresh keys", len(seen) == 2, "the same encrypted_key or iv twice")


@asks("jwe.p-256")
def jwe_p256(kit: Kit) -> None:
    opens(kit, "P-256")


@asks("jwe.p-521")
def jwe_p521(kit: Kit) -> None:
    opens(kit, "P-521")


@asks("jwe.rsa-oaep")
def jwe_rsa_oaep(kit: Kit) -> None:
    opens(kit, "RSA-OAEP-256")


@asks("jwe.ml-kem")
def jwe_ml_kem(kit: Kit) -> None:
    session = kit.open("ML-KEM-768")
    if (answer := kit.attest(session)).status != 200:
        not_applicable(f"built without pqc-experimental, it seems: {answer}")
    opens(kit, "ML-KEM-768")


@asks("jwe.rsa1-5")
def jwe_rsa1_5(kit: Kit) -> None:
    session = kit.open("RSA1_5")
    answer = kit.ok(kit.attest(session), step="attest")
    if answer.status == 200:
        session.key.open(kit.ok(kit.resource(Cookie=session.cookie), step="resource").body)


@asks("jwe.header-order")
def jwe_header_order(kit: Kit) -> None:
    session, _ = kit.attested()
    header, _ = session.key.open(kit.ok(kit.resource(Cookie=session.cookie)).body)
    kit.hold("text", header == coco_header(header), header)
    kit.hold("order", [*json.loads(header)] == ["alg", "enc", "epk"], header)
    kit.hold("epk", [*json.loads(header)["epk"]] == ["crv", "kty", "x", "y"], header)


@asks("jwe.aad")
def jwe_aad(kit: Kit) -> None:
    session, _ = kit.attested()
    value = kit.ok(kit.resource(Cookie=session.cookie)).json()
    kit.hold("members", set(value) == {"protected", "encrypted_key", "iv", "ciphertext", "tag"}, sorted(value))


@asks("resource.answer")
def resource_answer(kit: Kit) -> None:
    session, _ = kit.attested()
    answer = kit.ok(kit.resource(Cookie=session.cookie))
    kit.hold("content-type", (answer.header("content-type") or "").startswith("application/json"), answer.headers)
    kit.hold("cookie", answer.header("set-cookie") is None, answer.headers)


@asks("resource.no-session")
def resource_no_session(kit: Kit) -> None:
    kit.refused(kit.resource(), "TokenNotFound", "Attestation Token not found")


@asks("resource.unattested")
def resource_unattested(kit: Kit) -> None:
    for cookie in (kit.open().cookie, f"{COOKIE}={'0' * 32}"):
        kit.refused(kit.resource(Cookie=cookie), "TokenNotFound", "Attestation Token not found", step=cookie[:30])


@asks("resource.denied")
def resource_denied(kit: Kit) -> None:
    if not kit.options.denied:
        not_applicable("give --denied, a resource that the policy refuses to this attester")
    session, _ = kit.attested()
    kit.refused(kit.resource(kit.options.denied, Cookie=session.cookie), "PolicyDeny", "Access denied by policy")


@asks("resource.missing")
def resource_missing(kit: Kit) -> None:
    session, _ = kit.attested()
    answer = kit.resource(kit.options.missing, Cookie=session.cookie)
    kit.refused(answer, "PluginInternalError", "Plugin internal error")


@asks("resource.bad-path")
def resource_bad_path(kit: Kit) -> None:
    session, _ = kit.attested()
    for path in ("a", "a/b", "a/b/c/d", ".a/b/c", "a/../c", "a/b/c%00", "a/b/%2e%2e", "a//c", ""):
        answer = kit.resource(path or "x/", Cookie=session.cookie)
        kit.hold(path or "empty", answer.status in (401, 404) and answer.error()[0] != "", answer)


@asks("resource.method")
def resource_method(kit: Kit) -> None:
    answer = kit.wire.send("PUT", f"{PREFIX}/resource/{kit.options.resource}", b"x", kit.admin())
    kit.refused(answer, "PluginInternalError", "Plugin internal error")


@asks("resource.twice")
def resource_twice(kit: Kit) -> None:
    if not kit.options.boot_resource:
        not_applicable("give --boot-resource, one that is released to a booting guest")
    session, _ = kit.attested()
    kit.ok(kit.resource(kit.options.boot_resource, Cookie=session.cookie), step="first")
    kit.ok(kit.resource(kit.options.boot_resource, Cookie=session.cookie), step="again")


@asks("token.verify")
def token_verify(kit: Kit) -> None:
    _, token = kit.attested()
    found = verify_token(token, kit.options.token_ca, time.time())
    kit.hold("alg", found.header["alg"] in ("ES256", "RS256"), found.header["alg"])
    kit.hold("typ", found.header.get("typ") == "JWT", found.header.get("typ"))
    kit.hold("x5c", len(found.header["jwk"]["x5c"]) >= 1, found.header["jwk"])
    kit.hold("lifetime", 0 < found.claims["exp"] - found.claims["iat"] <= 86400, found.claims["exp"])


@asks("token.tee-pubkey")
def token_tee_pubkey(kit: Kit) -> None:
    for kind in ("P-256", "P-521", "RSA-OAEP-256"):
        session, token = kit.attested(kind)
        pointer, key = tee_pubkey(claims_of(token))
        kit.hold(kind, key == session.key.jwk, f"{pointer} is {key}")


@asks("token.ear")
def token_ear(kit: Kit) -> None:
    session, token = kit.attested()
    claims = claims_of(token)
    kit.hold("profile", claims["eat_profile"] == "tag:github.com,2024:confidential-containers/Trustee", claims)
    kit.hold("times", all(type(claims[name]) is int for name in ("iat", "exp")), claims)
    kit.hold("verifier", {"developer", "build"} <= set(claims["ear.verifier-id"]), claims["ear.verifier-id"])
    cpu = claims["submods"]["cpu0"]
    tiers = ("affirming", "warning", "contraindicated", "none")
    kit.hold("status", cpu["ear.status"] in tiers, cpu["ear.status"])
    vector = cpu["ear.trustworthiness-vector"]
    kit.hold("vector", all(type(v) is int for v in vector.values()) and len(vector) == 8, vector)
    kit.hold("policy-id", cpu["ear.appraisal-policy-id"] == "default", cpu["ear.appraisal-policy-id"])
    evidence = cpu[EVIDENCE]
    runtime = evidence["runtime_data_claims"]
    kit.hold("nonce", runtime["nonce"] == session.nonce, runtime)
    kit.hold("key", runtime["tee-pubkey"] == session.key.jwk, runtime)
    kit.hold("kind", kit.attester.tee in evidence, sorted(evidence))
    if kit.attester.tee == "tdx":
        _tdx(kit, evidence["tdx"])
    for name, submod in claims["submods"].items():
        kit.hold(name, submod["ear.status"] in tiers, submod["ear.status"])


REGISTERS = (
    "tcb_svn", "mr_seam", "mrsigner_seam", "seam_attributes", "td_attributes", "xfam", "mr_td", "mr_config_id",
    "mr_owner", "mr_owner_config", "rtmr_0", "rtmr_1", "rtmr_2", "rtmr_3", "report_data",
)  # fmt: skip


def _tdx(kit: Kit, tdx: dict[str, Any]) -> None:
    header, body = tdx["quote"]["header"], tdx["quote"]["body"]
    kit.hold("tee type", header["tee_type"] == "81000000", header)
    missing = [n for n in ("version", "att_key_type", "reserved", "vendor_id", "user_data") if n not in header]
    kit.hold("quote header", not missing, missing)
    missing = [n for n in REGISTERS if n not in body]
    kit.hold("quote body", not missing, missing)
    attributes = tdx["td_attributes"]
    names = {"debug", "septve_disable", "protection_keys", "key_locker", "perfmon"}
    kit.hold("attributes", set(attributes) == names and all(type(v) is bool for v in attributes.values()), attributes)
    missing = [n for n in ("tcb_status", "advisory_ids", "collateral_expiration_status") if n not in tdx]
    kit.hold("tcb", not missing, missing)


@asks("token.events")
def token_events(kit: Kit) -> None:
    if kit.attester.tee != "tdx":
        not_applicable("this attester has no event log")
    _, token = kit.attested()
    events = claims_of(token)["submods"]["cpu0"][EVIDENCE]["tdx"]["uefi_event_logs"]
    kit.hold("list", isinstance(events, list) and bool(events), events)
    for event in events:
        kit.hold("digest", event["digests"][0]["alg"] == "SHA-384", event)
        kit.hold("matches", event["digest_matches_event"] is True, event)
    ours = [e["details"]["data"] for e in events if isinstance(e["details"].get("data"), dict)]
    whole = all(set(d) >= {"domain", "operation", "content"} for d in ours)
    kit.hold("data", bool(ours) and whole, ours)
    kit.hold("event", all("event" in e for e in events), "no event")


@asks("token.bearer")
def token_bearer(kit: Kit) -> None:
    session, token = kit.attested()
    session.key.open(kit.ok(kit.resource(Authorization=f"Bearer {token}")).body)


@asks("token.cookie-first")
def token_cookie_first(kit: Kit) -> None:
    session, token = kit.attested()
    for cookie in (f"{COOKIE}={'0' * 32}", kit.open().cookie):
        answer = kit.resource(Authorization=f"Bearer {token}", Cookie=cookie)
        session.key.open(kit.ok(answer, step=cookie[:30]).body)


@asks("token.tampered")
def token_tampered(kit: Kit) -> None:
    _, token = kit.attested()
    head, payload, signature = token.split(".")
    claims = claims_of(token)
    later = b64u(json.dumps(claims | {"exp": claims["exp"] + 3600}).encode())
    other = b64u(json.dumps(claims | {"tee-pubkey": TeeKey.generate().jwk}).encode())
    plain = b64u(b'{"alg":"none","typ":"JWT"}')
    forged = [
        f"{head}.{later}.{signature}",
        f"{head}.{other}.{signature}",
        f"{plain}.{payload}.",
        f"{plain}.{payload}.AA",
    ]
    flipped = base64.urlsafe_b64decode(signature + "==")
    forged += [f"{head}.{payload}.{b64u(bytes([flipped[0] ^ 1]) + flipped[1:])}", "x", "a.b.c", ""]
    for one in forged:
        answer = kit.resource(Authorization=f"Bearer {one}")
        variant = answer.error()[0]
        kit.hold(one[:12], answer.status == 401 and variant in ("TokenVerifierError", "TokenNotFound"), answer)


@asks("token.expired")
def token_expired(kit: Kit) -> None:
    _, token = kit.attested()
    kit.wait(kit.options.lifetime_s + 5)
    kit.refused(kit.resource(Authorization=f"Bearer {token}"), "TokenVerifierError", "Token Verifier error")


@asks("session.expired")
def session_expired(kit: Kit) -> None:
    half = kit.options.lifetime_s // 2
    session, late = kit.open(), kit.open()
    kit.wait(half)
    kit.ok(kit.attest(session), step="in time")
    kit.wait(half + 5)  # /attest did not make it longer
    answer = kit.resource(Cookie=session.cookie)
    kit.hold("attested", answer.status == 401 and answer.error()[0] == "TokenNotFound", answer)
    kit.refused(kit.attest(late), "AttestationError", ATTEST, step="late")


@asks("head.large")
def head_large(kit: Kit) -> None:
    session, token = kit.attested()
    padding = "x" * (HEAD - len(token))
    answer = kit.resource(Authorization=f"Bearer {token}", **{"X-Padding": padding})
    session.key.open(kit.ok(answer).body)
    answer = kit.resource(Authorization="Bearer " + "a" * (HEAD // 2) + "." + "b" * (HEAD // 2 - 8) + ".c")
    kit.hold("no token", answer.status == 401 and answer.error()[0] == "TokenVerifierError", answer)


@asks("plugin.unknown")
def plugin_unknown(kit: Kit) -> None:
    for method in ("GET", "POST", "PUT", "DELETE"):
        answer = kit.wire.send(method, PREFIX + "/antechamber-kit/a/b", b"" if method == "POST" else None)
        kit.refused(answer, "PluginNotFound", "Plugin antechamber-kit not found", status=404, step=method)


@asks("plugin.method")
def plugin_method(kit: Kit) -> None:
    for method, name in (("GET", "auth"), ("GET", "attest"), ("PUT", "auth"), ("DELETE", "attestation-policy")):
        answer = kit.wire.send(method, f"{PREFIX}/{name}")
        kit.refused(answer, "PluginNotFound", f"Plugin {name} not found", status=404, step=f"{method} {name}")


@asks("error.detail")
def error_detail(kit: Kit) -> None:
    session, other = kit.open(), kit.open()
    body = kit.evidence(session)
    body["runtime-data"]["nonce"] = other.nonce
    _, detail = kit.attest(session, body).error()
    kit.hold("detail", detail == ATTEST, detail)


@asks("error.content-type")
def error_content_type(kit: Kit) -> None:
    kind = kit.resource().header("content-type")
    kit.hold("header", kind is None, kind)


@asks("health")
def health(kit: Kit) -> None:
    answer = kit.ok(kit.wire.send("GET", "/healthz"))
    kit.hold("body", answer.body == b"", answer.body[:40])


@asks("metrics")
def metrics(kit: Kit) -> None:
    kit.ok(kit.wire.send("GET", "/metrics"))


def claims_of(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return found
