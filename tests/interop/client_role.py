"""What a client must do, asked of our agent: its KBS client, and its whole boot, against the double of Trustee."""

import base64
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from aiohttp import web
from boots import Around, World
from brokers import KEY, MODEL_KEY, NAMES, Guest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from interop.kit.catalog import CATALOG
from interop.trustee_double import Double

from antechamber.broker.jwe import TeeKey
from antechamber.broker.kbs import Kbs
from antechamber.broker.transport import Transport
from antechamber.errors import AgentError, BrokerDenied, BrokerUnreachable
from antechamber.evidence.bundle import sha384
from antechamber.ports import Hardware


@dataclass
class Client:
    """Our agent and the double that it talks to."""

    double: Double
    url: str
    directory: Path
    world: World

    def kbs(self) -> Kbs:
        return Kbs(Transport(self.url, str(self.directory / "ca.pem"), 10))

    def guest(self, tee: TeeKey | None = None, **knobs: object) -> Guest:
        guest = Guest(self.world.machine(**knobs), tee=tee or TeeKey.generate())
        guest.measure()
        return guest

    def opens(self, guest: Guest | None = None) -> None:
        """RCAR, then a resource that opens to what the double has."""
        guest, kbs = guest or self.guest(), self.kbs()
        guest.attest(kbs)
        with guest.tee.open(kbs.release("kbs:///" + MODEL_KEY)) as key:
            assert bytes(key) == KEY
        assert self.double.log == [] == self.double.wrong

    def boots(self, hardware: Callable[[Hardware], Hardware] = lambda hw: hw) -> None:
        self.world.boot(broker=lambda _: self.kbs(), hardware=hardware)
        assert self.double.wrong == []

    def asked(self, what: str) -> int:
        return sum(line.endswith(what) for line in self.double.seen)


def plugins(world: World) -> dict[str, Callable[[web.Request, bytes], bytes]]:
    """The agent's own calls, as an external plugin of a Trustee would answer them."""
    broker = world.rig.broker

    def collateral(request: web.Request, body: bytes) -> bytes:
        return broker.collateral.sealed(request.query["nonce"], int(time.time()))

    def certificate(request: web.Request, body: bytes) -> bytes:
        key = x509.load_der_x509_csr(body).public_key()
        tls = sha384(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
        return broker.guests.certify(body, tls=tls, names=NAMES, now=int(time.time()))

    return {"antechamber/collateral": collateral, "antechamber/certificate": certificate}


Ask = Callable[[Client], None]
CLIENT: dict[str, Ask] = {}


def asks(scenario: str) -> Callable[[Ask], Ask]:
    def register(ask: Ask) -> Ask:
        assert scenario in CATALOG, scenario
        assert scenario not in CLIENT, scenario
        CLIENT[scenario] = ask
        return ask

    return register


def refused(call: Callable[[], object], kind: type[AgentError], code: str) -> str:
    with pytest.raises(kind) as error:
        call()
    assert error.value.code == code, error.value
    return error.value.detail


@asks("version.exact")
def version_exact(client: Client) -> None:
    client.opens()
    assert client.double.seen == ["POST /kbs/v0/auth", "POST /kbs/v0/attest", f"GET /kbs/v0/resource/{MODEL_KEY}"]


@asks("version.mismatch")
def version_mismatch(client: Client) -> None:
    client.double.knobs.version = "0.5.0"
    said = refused(client.kbs().challenge, BrokerDenied, "broker.version")
    assert "expect =0.5.0 while the request is 0.4.0" in said


@asks("auth.challenge")
def auth_challenge(client: Client) -> None:
    for nonce in ("AAAA", "A" * 43, "_" * 43 + "=", "A" * 44):
        client.double.knobs.nonce = nonce
        refused(client.kbs().challenge, BrokerUnreachable, "broker.protocol")


@asks("client.nonce")
def client_nonce(client: Client) -> None:
    client.double.knobs.nonce = "//+/yXUVaLtacTf+DznMn5CYrb76/vWJLuFHCxKs49s="
    client.opens()


@asks("auth.cookie")
def auth_cookie(client: Client) -> None:
    for path in ("", "/", "/kbs", "/kbs/v0"):
        client.double.knobs.cookie_path = path
        client.opens()
    client.double.knobs.cookie_path = "/elsewhere"
    guest, kbs = client.guest(), client.kbs()
    refused(lambda: guest.attest(kbs), BrokerDenied, "broker.attest")


@asks("auth.content-type")
def auth_content_type(client: Client) -> None:
    for kind in ("", "text/plain", "text/xml", "application/octet-stream"):
        client.double.knobs.kind = kind
        client.opens()


@asks("attest.answer")
def attest_answer(client: Client) -> None:
    token = client.guest().attest(client.kbs())
    assert [s.token for s in client.double.sessions.values()] == [token]


@asks("attest.binding")
def attest_binding(client: Client) -> None:
    """The double computes the digests itself: of the primary evidence, and the GPUs' nonce."""
    for count in (0, 1, 2):
        client.opens(client.guest(gpus=count))
    client.opens(client.guest(quote_version=5))


@asks("client.shape")
def client_shape(client: Client) -> None:
    client.opens()
    assert client.double.wrong == []


@asks("init-data.bound")
def init_data_bound(client: Client) -> None:
    for algorithm in ("sha256", "sha384", "sha512"):
        text = f'version = "0.1.0"\nalgorithm = "{algorithm}"\n[data]\n"x" = "é"\n'
        digest = hashlib.new(algorithm, text.encode()).digest()[:48].ljust(48, b"\0")
        guest, kbs = client.guest(mr_config_id=digest.hex()), client.kbs()
        nonce = kbs.challenge()
        kbs.attest(nonce, guest.tee.public_jwk, guest.evidence(nonce), text)
        assert client.double.log == []
        other, kbs = client.guest(), client.kbs()
        nonce, evidence = kbs.challenge(), None
        evidence = other.evidence(nonce)
        refused(
            lambda kbs=kbs, n=nonce, e=evidence, o=other, t=text: kbs.attest(n, o.tee.public_jwk, e, t),
            BrokerDenied,
            "broker.attest",
        )
        client.double.log.clear()


@asks("jwe.p-256")
def jwe_p256(client: Client) -> None:
    client.opens()


@asks("jwe.p-521")
def jwe_p521(client: Client) -> None:
    client.opens(client.guest(TeeKey(ec.generate_private_key(ec.SECP521R1()))))


RSA = TeeKey(rsa.generate_private_key(65537, 2048))


@asks("jwe.rsa-oaep")
def jwe_rsa_oaep(client: Client) -> None:
    client.opens(client.guest(RSA))


@asks("jwe.ml-kem")
def jwe_ml_kem(client: Client) -> None:
    client.opens(client.guest(TeeKey(MLKEM768PrivateKey.generate())))


@asks("jwe.rsa1-5")
def jwe_rsa1_5(client: Client) -> None:
    client.double.knobs.alg = "RSA1_5"
    guest, kbs = client.guest(RSA), client.kbs()
    guest.attest(kbs)
    sealed = kbs.release(MODEL_KEY)
    assert "RSA1_5" in refused(lambda: guest.tee.open(sealed), BrokerDenied, "broker.jwe")


@asks("jwe.header-order")
def jwe_header_order(client: Client) -> None:
    client.double.knobs.order = "enc-first"
    for tee in (TeeKey.generate(), RSA):
        client.opens(client.guest(tee))


@asks("jwe.aad")
def jwe_aad(client: Client) -> None:
    client.double.knobs.aad = "nobody's"
    client.opens()


@asks("resource.no-session")
def resource_no_session(client: Client) -> None:
    refused(lambda: client.kbs().release(MODEL_KEY), BrokerUnreachable, "broker.session")


@asks("resource.missing")
def resource_missing(client: Client) -> None:
    guest, kbs = client.guest(), client.kbs()
    guest.attest(kbs)
    refused(lambda: kbs.release("default/none/1"), BrokerDenied, "broker.resource")


@asks("resource.denied")
def resource_denied(client: Client) -> None:
    client.double.knobs.deny = True
    guest, kbs = client.guest(), client.kbs()
    guest.attest(kbs)
    assert "PolicyDeny" in refused(lambda: kbs.release(MODEL_KEY), BrokerDenied, "broker.resource")


@asks("token.expired")
def token_expired(client: Client) -> None:
    """Trustee looks at the token's end also where the session lives: the client then attests again."""
    client.double.knobs.expired = 1
    client.boots()
    assert (client.asked("/auth"), client.asked("/attest")) == (2, 2)


@asks("client.session-lost")
def client_session_lost(client: Client) -> None:
    client.double.knobs.lose = 2
    client.boots()
    assert (client.asked("/auth"), client.asked("/attest"), client.asked(MODEL_KEY)) == (3, 3, 3)
    client.double.knobs.lose, client.double.seen[:] = 9, []
    refused(client.boots, BrokerUnreachable, "broker.session")
    assert (client.asked("/auth"), client.asked("/attest"), client.asked(MODEL_KEY)) == (3, 3, 3)


@asks("client.denied")
def client_denied(client: Client) -> None:
    client.double.knobs.refuse = True
    refused(client.boots, BrokerDenied, "broker.attest")
    assert (client.asked("/auth"), client.asked("/attest"), client.asked(MODEL_KEY)) == (1, 1, 0)


@asks("client.quote")
def client_quote(client: Client) -> None:
    """Real devices give 5006 bytes of which 4936 are the quote. The same padding is sent when it serves."""

    def padding(hw: Hardware) -> Hardware:
        return replace(hw, quotes=Around(hw.quotes, quote=lambda bound: hw.quotes.quote(bound) + bytes(70)))

    client.boots(padding)
    assert base64.b64decode(client.double.evidence["quote"]).endswith(bytes(70))


@asks("client.status")
def client_status(client: Client) -> None:
    for status in (201, 202, 203, 206, 302, 307, 400, 500):
        client.double.knobs.status = status
        guest, kbs = client.guest(), client.kbs()
        guest.attest(kbs)
        code = "broker.unavailable" if status == 500 else "broker.protocol"
        refused(lambda kbs=kbs: kbs.release(MODEL_KEY), BrokerUnreachable, code)


@asks("error.content-type")
def error_content_type(client: Client) -> None:
    for kind in ("", "text/html", "application/octet-stream", "application/json; charset=latin-1"):
        client.double.knobs.content_type, client.double.knobs.deny = kind, True
        guest, kbs = client.guest(), client.kbs()
        guest.attest(kbs)
        assert "PolicyDeny" in refused(lambda kbs=kbs: kbs.release(MODEL_KEY), BrokerDenied, "broker.resource")


@asks("error.no-object")
def error_no_object(client: Client) -> None:
    client.double.knobs.html = client.double.knobs.deny = True
    guest, kbs = client.guest(), client.kbs()
    guest.attest(kbs)
    refused(lambda: kbs.release(MODEL_KEY), BrokerUnreachable, "broker.protocol")


@asks("client.token-large")
def client_token_large(client: Client) -> None:
    client.double.knobs.padding = 192 << 10
    assert len(client.guest().attest(client.kbs())) > 192 << 10
    client.opens()
