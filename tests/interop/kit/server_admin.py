"""What a server must do for its owner, as kbs-client asks it."""

import base64
import json
import os

from interop.kit.core import Kit, asks
from interop.kit.jose import b64u
from interop.kit.wire import PREFIX, Answer


def upload(kit: Kit, path: str, value: bytes, **headers: str) -> Answer:
    return kit.wire.send(
        "POST", f"{PREFIX}/resource/{path}", value, {"Content-Type": "application/octet-stream"} | headers
    )


@asks("admin.none")
def admin_none(kit: Kit) -> None:
    words = "admin access denied for endpoint"
    for path in ("/resource-policy", "/attestation-policy", "/reference-value"):
        kit.refused(kit.post(path, {}), "AdminAuthAccess", words, step="POST " + path)
        kit.refused(kit.post(path, {}, Authorization="Bearer a.b.c"), "AdminAuthAccess", words, step="no JWT " + path)
    for path in ("/resource-policy", "/reference-value/x"):
        kit.refused(kit.get(path), "AdminAuthAccess", words, step="GET " + path)


@asks("admin.none-plugin")
def admin_none_plugin(kit: Kit) -> None:
    answer = upload(kit, "antechamber-kit/none/1", b"x")
    kit.refused(answer, "AdminAuthInitialization", "failed to initialize [admin] configuration")


@asks("admin.expired")
def admin_expired(kit: Kit) -> None:
    answer = kit.get("/resource-policy", **kit.admin(-3600))
    kit.refused(answer, "AdminAuthAccess", "admin access denied for endpoint")


@asks("admin.resource")
def admin_resource(kit: Kit) -> None:
    headers, path = kit.admin(), kit.options.missing
    value = os.urandom(48)
    try:
        for stored in (b"first", value):
            answer = kit.ok(upload(kit, path, stored, **headers), step="POST")
            kit.hold("empty", answer.body == b"", answer.body[:40])
            kit.hold("content-type", (answer.header("content-type") or "").startswith("text/xml"), answer.headers)
        session, _ = kit.attested()
        answer = kit.ok(kit.resource(path, Cookie=session.cookie), step="GET")
        kit.hold("value", session.key.open(answer.body)[1] == value, "another value than what was uploaded")
    finally:
        answer = kit.wire.send("DELETE", f"{PREFIX}/resource/{path}", None, headers)
    kit.ok(answer, step="DELETE")
    session, _ = kit.attested()
    answer = kit.resource(path, Cookie=session.cookie)
    kit.hold("gone", answer.status in (401, 404) and answer.error()[0] == "PluginInternalError", answer)


@asks("admin.large")
def admin_large(kit: Kit) -> None:
    headers, path = kit.admin(), kit.options.missing
    answer = kit.ok(upload(kit, path, bytes(1 << 20), **headers))
    if answer.status == 200:
        kit.ok(kit.wire.send("DELETE", f"{PREFIX}/resource/{path}", None, headers), step="DELETE")


@asks("admin.policy-ids")
def admin_policy_ids(kit: Kit) -> None:
    answer = kit.ok(kit.get("/resource-policy", **kit.admin()))
    ids = answer.json()
    kit.hold("ids", isinstance(ids, list) and all(isinstance(i, str) for i in ids), ids)


REGO = b"package policy\n\ndefault allow := false\n"


@asks("admin.resource-policy")
def admin_resource_policy(kit: Kit) -> None:
    headers = kit.admin()
    if kit.profile == "trustee":
        kit.throwaway()
    kit.ok(kit.post("/resource-policy", {"policy": b64u(ALLOW)}, **headers))


ALLOW = b'package policy\n\nimport rego.v1\n\ndefault allow := false\n\nallow if data.plugin == "resource"\n'


@asks("admin.attestation-policy")
def admin_attestation_policy(kit: Kit) -> None:
    headers = kit.admin()
    if kit.profile == "trustee":
        kit.throwaway()
    body = {"type": "rego", "policy_id": "antechamber-kit_cpu", "policy": b64u(REGO)}
    kit.ok(kit.post("/attestation-policy", body, **headers))


@asks("admin.reference-value")
def admin_reference_value(kit: Kit) -> None:
    headers = kit.admin()
    if kit.profile == "trustee":
        kit.throwaway()
    payload = base64.b64encode(json.dumps({"antechamber-kit": ["00"]}).encode()).decode()
    answer = kit.ok(kit.post("/reference-value", {"version": "0.1.0", "type": "sample", "payload": payload}, **headers))
    if answer.status == 200:
        value = kit.ok(kit.get("/reference-value/antechamber-kit", **headers), step="GET").json()
        kit.hold("value", "00" in json.dumps(value), value)


@asks("admin.reference-unknown")
def admin_reference_unknown(kit: Kit) -> None:
    answer = kit.get("/reference-value/antechamber-kit-unknown", **kit.admin())
    kit.refused(answer, "RvpsError", "RVPS configuration failed")
