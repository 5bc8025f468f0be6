"""What the double of Trustee's KBS answers, route by route, as the reference has it. `trustee` serves it."""

import base64
import json
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

from aiohttp import web
from interop.kit.jose import tee_pubkey as pointed
from interop.kit.jose import unb64u, verify_token
from interop.trustee_seal import Refused, Signer, claims, reserialised, seal, verify_evidence
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey

PREFIX = "/kbs/v0"
ERRORS = "https://github.com/confidential-containers/kbs/errors/"
TEES = {"az-snp-vtpm", "az-tdx-vtpm", "nvidia", "sgx", "snp", "tdx", "cca", "csv", "se", "hygondcu", "tpm", "sample",
        "sampledevice"}  # fmt: skip


@dataclass
class Knobs:
    """What a scenario turns. Each default is Trustee's own behaviour."""

    version: str = "0.4.0"
    nonce: str = ""  # sent instead of a fresh one
    cookie_path: str = ""  # a Path attribute
    content_type: str = ""  # of errors; Trustee has none
    kind: str = "application/json"  # of 200s; "" is none
    order: str = "trustee"  # of the JWE's header; `enc-first`
    alg: str = ""  # seal for this algorithm whatever the key says
    aad: str = ""  # a member that nothing uses
    padding: int = 0  # bytes, in the token
    lose: int = 0  # so many sessions are forgotten after /attest
    expired: int = 0  # so many tokens are over when they are first shown
    deny: bool = False  # the policy denies every resource
    refuse: bool = False  # no evidence is accepted
    status: int = 200  # of a good answer to a GET
    html: bool = False  # errors are a proxy's page


@dataclass
class Session:
    tee: str
    nonce: str
    expires: float
    token: str = ""


class Failure(Exception):
    def __init__(self, variant: str, detail: str, status: int = 401) -> None:
        super().__init__(detail)
        self.variant, self.detail, self.status = variant, detail, status


def attest_failed() -> Failure:
    return Failure("AttestationError", "Attestation error: RCAR handshake Attest failed")


@dataclass
class Double:
    """Trustee's state. `seen` is what was asked; `wrong` what no client of the protocol does."""

    knobs: Knobs
    signer: Signer
    ca: bytes  # PEM: of tokens and TLS
    resources: dict[str, bytes] = field(default_factory=dict)
    plugins: dict[str, Callable[[web.Request, bytes], bytes]] = field(default_factory=dict)
    admin: bytes | None = None  # public key, PEM
    lifetime_s: int = 300
    sessions: dict[str, Session] = field(default_factory=dict)
    policies: dict[str, bytes] = field(default_factory=dict)
    references: dict[str, Any] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    evidence: Any = None  # primary evidence that was sent last
    log: list[str] = field(default_factory=list)  # causes that the client is not told
    clock: Callable[[], float] = time.time

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append(f"{request.method} {request.path}")
        try:
            return self._route(request, body)
        except Failure as e:
            if self.knobs.html:
                return web.Response(status=e.status, body=b"<html>go away</html>", content_type="text/html")
            said = json.dumps({"type": ERRORS + e.variant, "detail": e.detail}).encode()
            answer = web.Response(status=e.status, body=said)
            answer.headers["Content-Type"] = self.knobs.content_type or "antechamber/remove"
            return answer

    def _route(self, request: web.Request, body: bytes) -> web.Response:
        if request.path == "/healthz":
            return web.Response()
        if request.path == "/metrics":
            return web.Response(text="kbs_http_requests_total 1\n")
        if not request.path.startswith(PREFIX + "/"):
            raise Failure("InvalidRequestPath", f"Request path {request.path} is invalid", 404)
        first, _, rest = request.path.removeprefix(PREFIX + "/").partition("/")
        what = (request.method, first)
        if what == ("POST", "auth"):
            return self._auth(body)
        if what == ("POST", "attest"):
            return self._attest(request, body)
        if first in ("resource-policy", "attestation-policy", "reference-value") and what[0] in ("GET", "POST"):
            return self._administer(request, first, rest, body)
        if first == "resource":
            return self._resource(request, rest, body)
        if first == "external" and rest in self.plugins:
            return web.Response(body=self.plugins[rest](request, body), content_type="text/xml")
        raise Failure("PluginNotFound", f"Plugin {first} not found", 404)

    def _auth(self, body: bytes) -> web.Response:
        words = "Attestation error: RCAR handshake Auth failed: "
        try:
            sent = json.loads(body)
            version, tee, _ = sent["version"], sent["tee"], sent["extra-params"]
            if not isinstance(version, str) or tee not in TEES:
                raise ValueError
        except (ValueError, KeyError, TypeError) as e:
            raise Failure("AttestationError", words + "Deserialize Request failed") from e
        if version != self.knobs.version:
            seen = f"expect ={self.knobs.version} while the request is {version}"
            raise Failure("AttestationError", f"{words}KBS Client Protocol Version Mismatch: {seen}")
        nonce = self.knobs.nonce or base64.b64encode(os.urandom(32)).decode()
        session = Session(tee, nonce, self.clock() + 60 * 5)
        self.sessions[name := uuid.uuid4().hex] = session
        return self._with_cookie(name, session, {"nonce": nonce, "extra-params": ""})

    def _with_cookie(self, name: str, session: Session, value: object) -> web.Response:
        cookie = f"kbs-session-id={name}; Expires={formatdate(session.expires, usegmt=True)}"
        if self.knobs.cookie_path:
            cookie += f"; Path={self.knobs.cookie_path}"
        return self._good(json.dumps(value).encode(), {"Set-Cookie": cookie})

    def _good(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> web.Response:
        answer = web.Response(status=status, body=body, headers=headers)
        answer.headers["Content-Type"] = self.knobs.kind or "antechamber/remove"
        return answer

    def _attest(self, request: web.Request, body: bytes) -> web.Response:
        name = request.cookies.get("kbs-session-id")
        if name is None:
            raise attest_failed()
        try:
            sent = json.loads(body)
            runtime, evidence, init = sent["runtime-data"], sent["tee-evidence"], sent.get("init-data")
            nonce, additional, primary = runtime["nonce"], evidence["additional_evidence"], evidence["primary_evidence"]
            if not isinstance(additional, str) or set(sent) - {"init-data", "runtime-data", "tee-evidence"}:
                self.wrong.append(f"attestation {sorted(sent)}")
        except (ValueError, KeyError, TypeError) as e:
            raise attest_failed() from e
        self.evidence = primary
        session = self.sessions.get(name)
        if session is None or session.expires <= self.clock():
            raise attest_failed()
        if not session.token:
            session.token = self._verified(session, nonce, runtime.get("tee-pubkey"), primary, additional, init)
        token = session.token
        if self.knobs.lose:
            self.knobs.lose -= 1
            del self.sessions[name]
        return self._with_cookie(name, session, {"token": token})

    def _verified(self, session: Session, nonce: str, key: Any, primary: Any, additional: str, init: Any) -> str:
        try:
            if nonce != session.nonce or self.knobs.refuse:
                raise Refused("nonce, or a knob")
            text = None
            if init is not None:
                if init["format"] != "toml" or 'algorithm = "' not in init["body"]:
                    raise Refused("init-data")
                text = init["body"]
            jwk = reserialised(key)
            found = verify_evidence(session.tee, primary, additional, nonce, jwk, text)
        except (Refused, ValueError, KeyError, TypeError, IndexError) as e:
            self.log.append(f"{type(e).__name__}: {e}")
            raise attest_failed() from e
        made = claims(found, nonce, jwk, additional, text, self.lifetime_s)
        made["iat"], made["exp"] = int(self.clock()), int(self.clock()) + self.lifetime_s
        if self.knobs.padding:
            made["x-padding"] = "x" * self.knobs.padding
        return self.signer.token(made)

    def _resource(self, request: web.Request, path: str, body: bytes) -> web.Response:
        if request.method == "GET":
            jwk = self._authorised(request)
            if self.knobs.deny or path.startswith("denied/"):
                raise Failure("PolicyDeny", "Access denied by policy")
            if path not in self.resources:
                raise Failure("PluginInternalError", "Plugin internal error")
            sealed = seal(jwk | ({"alg": self.knobs.alg} if self.knobs.alg else {}), self.resources[path],
                          order=self.knobs.order, aad=self.knobs.aad or None)  # fmt: skip
            return self._good(sealed, status=self.knobs.status)
        try:
            self._require_admin(request)
        except Failure as e:
            raise Failure("AdminAuthInitialization", f"failed to initialize [admin] configuration: {e.detail}") from e
        if request.method == "POST":
            self.resources[path] = body
        elif request.method == "DELETE" and path in self.resources:
            del self.resources[path]
        else:
            raise Failure("PluginInternalError", "Plugin internal error")
        return web.Response(content_type="text/xml")

    def _authorised(self, request: web.Request) -> dict[str, str]:
        """The session's cookie, else the token; either way the token is verified."""
        session = self.sessions.get(request.cookies.get("kbs-session-id", ""))
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        if session is not None and session.token and session.expires > self.clock():
            token = session.token
        elif scheme == "Bearer":
            token = bearer
        else:
            raise Failure("TokenNotFound", "Attestation Token not found")
        if self.knobs.expired:
            self.knobs.expired -= 1
            raise Failure("TokenVerifierError", "Token Verifier error")
        try:
            found: dict[str, str] = pointed(verify_token(token, self.ca, self.clock()).claims)[1]
        except (ValueError, KeyError, TypeError, AttributeError, JoseError) as e:
            raise Failure("TokenVerifierError", "Token Verifier error") from e
        return found

    def _administer(self, request: web.Request, first: str, rest: str, body: bytes) -> web.Response:
        self._require_admin(request)
        if request.method == "GET" and first == "resource-policy":
            return self._good(json.dumps([*self.policies] or ["resource-policy"]).encode())
        if request.method == "GET" and rest in self.references:
            return self._good(json.dumps(self.references[rest]).encode())
        if request.method == "GET" and first == "reference-value":
            raise Failure("RvpsError", "RVPS configuration failed: no such value")
        sent = json.loads(body)
        if first == "reference-value":
            self.references |= json.loads(base64.b64decode(sent["payload"], validate=True))
        else:
            name = sent["policy_id"] if first == "attestation-policy" else first
            self.policies[name] = unb64u(sent["policy"])
        return web.Response()

    def _require_admin(self, request: web.Request) -> None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        try:
            if scheme != "Bearer" or self.admin is None:
                raise ValueError("no token")
            found = jwt.decode(token, OKPKey.import_key(self.admin), algorithms=["EdDSA"]).claims
            if found["exp"] <= self.clock() or found["role"] != "admin":
                raise ValueError("expired, or another role")
        except (JoseError, ValueError, KeyError, TypeError) as e:
            raise Failure("AdminAuthAccess", f"admin access denied for endpoint {request.path}: {e}") from e
