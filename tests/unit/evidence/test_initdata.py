"""Init-data: Trustee's digests, settings from an allow-list. Vectors: shared/vectors/kbs/initdata.json."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vectors import VECTORS, needs_vectors

from antechamber.errors import AgentError, AppraisalRefused, MalformedEvidence
from antechamber.evidence import initdata

HASH = "sha256:" + "0" * 64
FULL = f"""MODEL_HASH = "{HASH}"
TLS_INSIDE_ENCLAVE = true
MODEL_SOURCE = "/run/model"
MODEL_KEY = "kbs:///default/key/model"
MODEL_NAME = "tiny"
BROKER_URL = "https://broker.example:8080"
NAMES = ["a.example", "b.example"]
"""


def text(settings: str, *, algorithm: str = "sha384", version: str = "0.1.0") -> bytes:
    return f"""version = "{version}"
algorithm = "{algorithm}"
[data]
"antechamber.toml" = '''
{settings}'''
""".encode()


def code_of(raw: bytes) -> str:
    with pytest.raises(AgentError) as refused:
        initdata.parse(raw)
    return refused.value.code


@needs_vectors
def test_digest_is_trustees_when_compared_with_its_vectors() -> None:
    for vector in json.loads((VECTORS / "kbs" / "initdata.json").read_text()):
        raw = vector["toml"].encode()
        expected = bytes.fromhex(vector["tdx_mrconfigid_hex"])
        bound = initdata.require_bound(raw, expected)
        assert (bound.algorithm, bound.digest.hex()) == (vector["algorithm"], vector["digest_hex"])
        assert initdata.mr_config_id(raw) == expected
        assert set(bound.data) == {"aa.toml", "policy.rego"}
        assert bound.model_hash is None


def test_settings_are_read_when_allowed() -> None:
    parsed = initdata.parse(text(FULL))
    assert parsed.model_hash == HASH
    assert parsed.model_source == "/run/model"
    assert parsed.model_key == "kbs:///default/key/model"
    assert parsed.model_name == "tiny"
    assert parsed.broker_url == "https://broker.example:8080"
    assert parsed.names == ("a.example", "b.example")
    assert parsed.tls_inside_enclave is True


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_init_data_is_bound_when_its_digest_is_mrconfigid(algorithm: str) -> None:
    raw = text(FULL, algorithm=algorithm)
    bound = initdata.mr_config_id(raw)
    assert len(bound) == 48
    assert initdata.require_bound(raw, bound).mr_config_id == bound
    with pytest.raises(AppraisalRefused) as refused:
        initdata.require_bound(raw + b"#", bound)
    assert refused.value.code == "initdata.digest"


@pytest.mark.parametrize("other", [bytes(48), b"", bytes(32)], ids=["zero", "empty", "short"])
def test_init_data_is_refused_when_mrconfigid_is_not_its_digest(other: bytes) -> None:
    with pytest.raises(AppraisalRefused) as refused:
        initdata.require_bound(text(FULL), other)
    assert refused.value.code == "initdata.digest"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "initdata.shape"),
        (b"\xff", "initdata.toml"),
        (b"a = 1\na = 2", "initdata.toml"),
        (b"#" * (64 << 10) + b"#", "initdata.size"),
        (b"a = " + b"[" * 5000, "initdata.toml"),
        (text("", version="0.2.0"), "initdata.shape"),
        (b'extra = 1\nversion = "0.1.0"\nalgorithm = "sha256"\n[data]\n', "initdata.shape"),
        (text("", algorithm="sm3"), "initdata.algorithm"),
        (text("", algorithm="md5"), "initdata.algorithm"),
        (b'version = "0.1.0"\nalgorithm = 256\n[data]\n', "initdata.algorithm"),
        (b'version = "0.1.0"\nalgorithm = "sha256"\ndata = 1\n', "initdata.shape"),
        (b'version = "0.1.0"\nalgorithm = "sha256"\n[data]\na = 1\n', "initdata.shape"),
        (text("nonsense"), "initdata.toml"),
        (text('OPTIONS = "x"'), "initdata.key"),
        (text('model_hash = "x"'), "initdata.key"),
        (text('[MODEL_HASH]\na = "x"'), "initdata.value"),
        (text('MODEL_HASH = ""'), "initdata.value"),
        (text("MODEL_NAME = 1"), "initdata.value"),
        (text('MODEL_NAME = "a\\\\nb"').replace(b"\\\\", b"\\"), "initdata.value"),
        (text('MODEL_NAME = "a "'), "initdata.value"),
        (text("NAMES = []"), "initdata.value"),
        (text('NAMES = "a.example"'), "initdata.value"),
        (text('NAMES = ["a", 1]'), "initdata.value"),
        (text("TLS_INSIDE_ENCLAVE = false"), "initdata.tls"),
        (text('TLS_INSIDE_ENCLAVE = "true"'), "initdata.tls"),
        (text("TLS_INSIDE_ENCLAVE = 1"), "initdata.tls"),
    ],
    ids=lambda v: v if isinstance(v, str) else repr(v[-30:]),
)
def test_init_data_is_refused_when_it_says_anything_else(raw: bytes, code: str) -> None:
    assert code_of(raw) == code


@given(st.one_of(st.binary(max_size=200), st.text(max_size=100).map(text)))
def test_init_data_parses_or_refuses_any_bytes(raw: bytes) -> None:
    with suppress(MalformedEvidence, AppraisalRefused):
        initdata.parse(raw)
