"""What the owner of a broker does: make one, run it, upload to it."""

import asyncio
import base64
import os
import signal
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from os import urandom
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from antechamber import log
from antechamber.broker.admin_token import AdminVerifier, build_admin_token, load_ed25519, load_ed25519_public
from antechamber.broker.audit import Audit, Record
from antechamber.broker.authority import Authority, key_pem, load_ec_key
from antechamber.broker.decisions import Broker
from antechamber.broker.ear import TokenSigner
from antechamber.broker.endorsements import CollateralFiles
from antechamber.broker.history import History
from antechamber.broker.kbs import deny
from antechamber.broker.messages import PREFIX, parse_path
from antechamber.broker.refused import RefusedBodies
from antechamber.broker.rules import RulesFile
from antechamber.broker.sessions import Sessions
from antechamber.broker.settings import FILE, BrokerSettings, load_settings, read_file, read_private
from antechamber.broker.store import Database, Store, load_master_key
from antechamber.broker.transport import Transport
from antechamber.errors import ConfigError, MalformedEvidence

_SETTINGS = """\
# The broker's parts. Paths are relative to this directory.
version: 1
listen: 127.0.0.1:8080
tls: {certificate: server.pem, key: server.key}
policy: policy.yaml
collateral: collateral
collateral_key: collateral-signer.key
master_key: master.key
database: broker.sqlite
tokens: {certificate: token.pem, key: token.key, ca: token-ca.pem}
guests: {certificate: guest-ca.pem, key: guest-ca.key}
admin: {public_key: admin.pub.pem}
keep_refused: 0 # that many bodies of refused guests, for `antechamber policy explain`
"""
_RULES = """\
# What goes to whom. What no rule names is denied, so this file denies everything.
# Replace it by renaming a new file over it: a guest takes a rule that is missing for a denial, and powers off.
version: 1
anchors: {intel: intel, nvidia: nvidia}
policies: {}
resources: {}
# resources:
#   default/model-key/1:
#     {policy: production, phase: boot, until: unlimited, releases: unlimited, at_once: unlimited}
# certificates: {policy: production, names: [llm.example.org]}
# lease: {policy: production}
"""
_SERVER_DAYS = 365
ADMIN_KEY, BROKER_CA = "admin.key", "broker-ca.pem"


def init(directory: Path, names: Sequence[str]) -> None:
    """Make a broker that denies everything: keys, authorities, certificates, configuration.

    `names`: DNS names and addresses of the broker's own certificate. Raises ConfigError `broker.exists`, `broker.file`.
    """
    parts = _parts(names, int(time.time()))
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise ConfigError("broker.exists", f"{directory} is not empty", hint="give a new directory")
        (directory / "collateral").mkdir()
        for name, content in parts.items():
            _write(directory / name, content)
    except OSError as e:
        raise ConfigError("broker.file", f"{directory}: {e.strerror}", hint="give a directory you may write") from e


def _parts(names: Sequence[str], now: int) -> dict[str, bytes]:
    """File name to content. `broker-ca.key` only renews the server's certificate: keep it elsewhere."""
    broker, guests, tokens = (
        Authority.create(f"Antechamber {what} CA", now=now) for what in ("broker", "guest", "token")
    )
    server, server_key = broker.serve(names, now=now, days=_SERVER_DAYS)
    signer = ec.generate_private_key(ec.SECP256R1())
    signing = tokens.issue(signer.public_key(), "Antechamber tokens", names=(), usage=(), now=now, days=3650)
    admin, collateral = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    return {
        "master.key": urandom(32),
        ADMIN_KEY: _ed25519_pem(admin),
        "admin.pub.pem": _public_pem(admin),
        BROKER_CA: broker.pem()[0],
        "broker-ca.key": broker.pem()[1],
        "server.pem": server,
        "server.key": server_key,
        "guest-ca.pem": guests.pem()[0],
        "guest-ca.key": guests.pem()[1],
        "token-ca.pem": tokens.pem()[0],
        "token.pem": signing.public_bytes(Encoding.PEM),
        "token.key": key_pem(signer),
        "collateral-signer.key": _ed25519_pem(collateral),
        "collateral-signer.pub.pem": _public_pem(collateral),
        "collateral-signer.b64": _base64(collateral),
        FILE: _SETTINGS.encode(),
        "policy.yaml": _RULES.encode(),
    }


def renew(directory: Path, names: Sequence[str]) -> None:
    """A new server certificate and key under the same CA: guests go on. Raises ConfigError `broker.*`."""
    authority = Authority.load(read_file(directory, BROKER_CA), read_private(directory, "broker-ca.key"))
    certificate, key = authority.serve(names, now=int(time.time()), days=_SERVER_DAYS)
    settings = load_settings(directory)
    for name, content in ((settings.tls.certificate, certificate), (settings.tls.key, key)):
        (directory / name).unlink(missing_ok=True)
        _write(directory / name, content)


def _base64(key: Ed25519PrivateKey) -> bytes:
    """The public key as `trust.collateral_signer` and policies write it."""
    return base64.b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)) + b"\n"


def _public_pem(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _ed25519_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, content: bytes) -> None:
    """A private key is never readable by another, not even for a moment."""
    mode = 0o600 if path.suffix == ".key" else 0o644
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)


def load_broker(directory: Path) -> tuple[Broker, BrokerSettings]:
    """A broker from its directory. Raises ConfigError `broker.*`, and as RulesFile does for unusable rules, later."""
    settings = load_settings(directory)
    database = Database(str(directory / settings.database))
    history = History(database)
    public = load_ed25519_public(read_file(directory, settings.admin.public_key))
    tokens = settings.tokens
    broker = Broker(
        rules=RulesFile(str(directory / settings.policy)),
        store=Store(database, load_master_key(str(directory / settings.master_key))),
        history=history,
        audit=Audit(database),
        sessions=Sessions(settings.session_minutes * 60, spent=history.spent()),
        tokens=_signer(directory, settings),
        token_ca=read_file(directory, tokens.ca).decode("ascii", "replace"),
        guests=Authority.load(
            read_file(directory, settings.guests.certificate), read_private(directory, settings.guests.key)
        ),
        collateral=CollateralFiles(
            str(directory / settings.collateral), load_ed25519(read_private(directory, settings.collateral_key))
        ),
        admins=AdminVerifier(public, settings.admin),
        bodies=RefusedBodies(directory, settings.keep_refused),
    )
    return broker, settings


def _signer(directory: Path, settings: BrokerSettings) -> TokenSigner:
    chain = []
    for name in (settings.tokens.certificate, settings.tokens.ca):
        try:
            chain.append(x509.load_pem_x509_certificate(read_file(directory, name)))
        except ValueError as e:
            hint = "restore what `antechamber broker init` wrote"
            raise ConfigError("broker.authority", f"{name} is not a PEM certificate", hint=hint) from e
    return TokenSigner(load_ec_key(read_private(directory, settings.tokens.key)), chain)


def _quiet() -> None:
    """joserfc warns of the name EdDSA (RFC 9864 renames it); the protocol's admin tokens have no other."""
    from joserfc.errors import SecurityWarning  # noqa: PLC0415

    warnings.filterwarnings("ignore", category=SecurityWarning)


def serve(directory: Path, listen: str | None = None, ready_fd: int | None = None) -> int:
    """Run until SIGTERM or SIGINT; 0. When it listens, its URL and a newline go to `ready_fd`, which is then closed.

    Raises ConfigError `broker.*`.
    """
    _quiet()
    broker, settings = load_broker(directory)
    with suppress(ConfigError):  # logged there; until the file is right, each request is refused
        broker.rules.current()
    try:
        asyncio.run(_serve(broker, settings, directory, listen or settings.listen, ready_fd))
    except OSError as e:
        raise ConfigError(
            "broker.listen", e.strerror or str(e), hint="a free address, and this broker's own TLS key"
        ) from e
    return 0


async def _serve(broker: Broker, settings: BrokerSettings, directory: Path, listen: str, ready_fd: int | None) -> None:
    from antechamber.broker import server  # noqa: PLC0415  # aiohttp: not for `init` and `upload`

    read_private(directory, settings.tls.key)
    context = server.tls_context(str(directory / settings.tls.certificate), str(directory / settings.tls.key))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner, url = await server.start(broker, listen, context)
    log.event("broker.listening", url=url)
    if ready_fd is not None:
        with open(ready_fd, "w", encoding="ascii") as ready:
            ready.write(url + "\n")
    await stop.wait()
    await runner.cleanup()


def audit_records(directory: Path, last: int) -> tuple[Record, ...]:
    """The newest decisions, oldest first, whether the broker runs or not. Raises ConfigError `broker.*`."""
    return Audit(Database(str(directory / load_settings(directory).database))).records(last)


def upload(url: str, directory: Path, resource: str, data: bytes, timeout_s: float = 10) -> None:
    """Put a resource into a broker, with the admin key and the CA that `init` left in `directory`.

    Raises ConfigError, BrokerUnreachable, BrokerDenied `broker.denied`.
    """
    if not url.startswith("https://"):
        raise ConfigError("config.value", f"the broker's URL is {url!r:.120}", hint="use https://")
    try:
        path = parse_path(resource)
    except MalformedEvidence as e:
        raise ConfigError("config.value", e.detail, hint="kbs:///repository/type/tag") from e
    _quiet()
    token = build_admin_token(load_ed25519(read_private(directory, ADMIN_KEY)), load_settings(directory).admin)
    transport = Transport(url, str(directory / BROKER_CA), timeout_s)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/octet-stream"}
    answer = transport.exchange("POST", f"{PREFIX}/resource/{path}", body=data, headers=headers, limit=64 << 10)
    transport.close()
    if answer.status != 200:
        deny(answer, "broker.denied")
