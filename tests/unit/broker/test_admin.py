import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from brokers import KEY, NAMES, Rig
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from antechamber import strict
from antechamber.broker import admin
from antechamber.broker.admin_token import AdminVerifier, build_admin_token
from antechamber.broker.messages import b64url
from antechamber.broker.settings import AdminSettings, BrokerSettings, load_settings, parse_listen
from antechamber.errors import AgentError, BrokerDenied, ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
SETTINGS = AdminSettings(public_key="")


def test_init_makes_a_broker_that_denies_everything(tmp_path: Path) -> None:
    admin.init(tmp_path / "b", NAMES)
    broker, settings = admin.load_broker(tmp_path / "b")
    rules = broker.rules.current().rules
    assert (rules.policies, rules.resources, rules.certificates, rules.lease) == ({}, {}, None, None)
    assert rules.anchors.anchors().vendors
    assert settings == load_settings(tmp_path / "b")


def test_init_keeps_private_keys_private(tmp_path: Path) -> None:
    os.umask(0o022)
    admin.init(tmp_path / "b", NAMES)
    private = {p.name for p in (tmp_path / "b").iterdir() if p.stat().st_mode & 0o777 == 0o600}
    assert private == {
        "master.key", "admin.key", "broker-ca.key", "server.key", "guest-ca.key", "token.key", "collateral-signer.key",
    }  # fmt: skip
    for path in (tmp_path / "b").iterdir():
        if path.is_file():
            assert (b"PRIVATE KEY" in path.read_bytes()) == (path.name in private - {"master.key"})


def test_init_refuses_a_directory_in_use_and_no_names(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for directory, names, code in ((tmp_path, NAMES, "broker.exists"), (tmp_path / "b", (), "broker.names")):
        with pytest.raises(ConfigError) as refused:
            admin.init(directory, names)
        assert refused.value.code == code


@pytest.mark.parametrize("name", ["guest-ca.key", "token.key", "collateral-signer.key", "master.key"])
def test_broker_refuses_a_key_that_others_may_read(tmp_path: Path, name: str) -> None:
    admin.init(tmp_path / "b", NAMES)
    (tmp_path / "b" / name).chmod(0o644)
    with pytest.raises(ConfigError) as refused:
        admin.load_broker(tmp_path / "b")
    assert refused.value.code in ("broker.mode", "broker.master-key")


@pytest.mark.parametrize(
    ("change", "code"),
    [("session_minutes: 0", "broker.value"), ("insecure: true", "broker.unknown"), ("listen: x", "broker.duplicate")],
)
def test_settings_refuse(tmp_path: Path, change: str, code: str) -> None:
    admin.init(tmp_path / "b", NAMES)
    with (tmp_path / "b" / "broker.yaml").open("a") as file:
        file.write(change + "\n")
    with pytest.raises(ConfigError) as refused:
        load_settings(tmp_path / "b")
    assert refused.value.code == code


@pytest.mark.parametrize("text", ["8080", ":8080", "a:", "a:x", "a:65536", "a:-1"])
def test_listen_refuses(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_listen(text)


def test_listen_reads_ipv6() -> None:
    assert parse_listen("[::1]:80") == ("::1", 80)


def test_upload_stores_and_replaces_a_resource(rig: Rig) -> None:
    admin.upload(rig.url, rig.directory, "kbs:///default/other/1", b"value")
    secret = rig.broker.store.get("default/other/1")
    assert secret is not None
    with secret as value:
        assert bytes(value) == b"value"
    assert rig.decisions() == [("stored", "")]


def test_upload_refuses_a_path(rig: Rig) -> None:
    with pytest.raises(ConfigError):
        admin.upload(rig.url, rig.directory, "../b/c", KEY)


def test_renew_keeps_the_ca(rig: Rig) -> None:
    before = (rig.directory / "server.pem").read_bytes()
    admin.renew(rig.directory, ("localhost",))
    assert (rig.directory / "server.pem").read_bytes() != before
    assert (rig.directory / "server.key").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "change",
    [{"iss": "x"}, {"aud": "x"}, {"role": "user"}, {"exp": 1}, {"exp": None}, {"exp": 1 << 40}, {"nbf": 1 << 40}],
)
def test_admin_token_refuses_claims(change: dict[str, object]) -> None:
    from joserfc import jwt
    from joserfc.jwk import OKPKey

    key = Ed25519PrivateKey.generate()
    now = int(time.time())
    claims = {"iss": "antechamber", "aud": ["KBS"], "role": "admin", "exp": now + 60}
    private = OKPKey.import_key(admin._ed25519_pem(key))
    token = jwt.encode({"alg": "EdDSA"}, claims | change, private, algorithms=["EdDSA"])
    with pytest.raises(BrokerDenied) as refused:
        AdminVerifier(key.public_key(), SETTINGS).require(token, now)
    assert refused.value.code == "admin.token"


CRITICAL = b64url(b'{"alg":"EdDSA","crit":5}') + ".e30." + "A" * 86


@pytest.mark.parametrize("token", [None, "", "a.b.c", "e30.e30.", "eyJhbGciOiJub25lIn0.e30.", CRITICAL])
def test_admin_token_refuses_what_is_none(token: str | None) -> None:
    with pytest.raises(BrokerDenied):
        AdminVerifier(Ed25519PrivateKey.generate().public_key(), SETTINGS).require(token, 0)


def test_admin_token_is_of_its_key() -> None:
    key = Ed25519PrivateKey.generate()
    token = build_admin_token(key, SETTINGS)
    assert AdminVerifier(key.public_key(), SETTINGS).require(token, int(time.time())) == "admin"
    with pytest.raises(AgentError):
        AdminVerifier(Ed25519PrivateKey.generate().public_key(), SETTINGS).require(token, int(time.time()))


def test_serve_says_when_it_listens_and_ends_on_sigterm(tmp_path: Path) -> None:
    admin.init(tmp_path / "b", NAMES)
    read, write = os.pipe()
    program = "import sys; from pathlib import Path; from antechamber.broker import admin; "
    program += "sys.exit(admin.serve(Path(sys.argv[1]), '127.0.0.1:0', int(sys.argv[2])))"
    argv = [sys.executable, "-c", program, str(tmp_path / "b"), str(write)]
    with subprocess.Popen(argv, pass_fds=[write]) as process:
        os.close(write)
        with open(read, encoding="ascii") as ready:
            assert ready.readline().startswith("https://127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_serve_refuses_an_address_in_use(rig: Rig) -> None:
    with pytest.raises(ConfigError) as refused:
        admin.serve(rig.directory, rig.url.removeprefix("https://"))
    assert refused.value.code == "broker.listen"


ADMIN = Ed25519PrivateKey.from_private_bytes(bytes(32))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.text(max_size=60) | st.from_regex(r"[\w-]{1,9}\.[\w-]{1,9}\.[\w-]{0,9}", fullmatch=True))
def test_admin_token_is_denied_whatever_it_says_when_nobody_signed_it(text: str) -> None:
    with pytest.raises(BrokerDenied):
        AdminVerifier(ADMIN.public_key(), SETTINGS).require(text, 0)


@given(st.sampled_from(["exp", "nbf", "iss", "aud", "sub", "role"]), JSON, st.dictionaries(st.text(max_size=5), JSON))
def test_admin_token_is_read_or_denied_whatever_its_claims(name: str, value: object, header: dict[str, object]) -> None:
    import json

    claims = {"exp": 100, "iss": "antechamber", "aud": "KBS", "role": "admin"} | {name: value}
    text = ".".join(b64url(json.dumps(part).encode()) for part in (header | {"alg": "EdDSA"}, claims))
    token = text + "." + b64url(ADMIN.sign(text.encode()))
    with suppress(BrokerDenied):
        AdminVerifier(ADMIN.public_key(), SETTINGS).require(token, 0)


@given(st.text(max_size=40) | st.from_regex(r"[0-9.]{0,9}:[0-9]{0,7}", fullmatch=True))
def test_address_parses_or_refuses_any_text(text: str) -> None:
    with suppress(ConfigError):
        assert 0 <= parse_listen(text)[1] <= 65535


@given(st.binary(max_size=200) | JSON.map(lambda value: yaml.safe_dump(value).encode()))
def test_settings_parse_or_refuse_any_bytes(raw: bytes) -> None:
    with suppress(ConfigError):
        strict.load_yaml(raw, BrokerSettings, error=ConfigError, family="broker")
