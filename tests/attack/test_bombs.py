"""Small inputs that would grow large: each is refused with a code before memory, or time, is gone.

What every parser takes at most stands in docs/fuzzing.md.
"""

import gzip
import json
import resource
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from brokers import PREFIX, auth_body, cookie_of, running
from fuzz.targets import jwe as jwe_target
from fuzz.targets import token as token_target
from unit.gateway.world import running as gateway

from antechamber import strict
from antechamber.boot.handover import parse_request
from antechamber.broker.messages import Attestation, Challenge, ErrorInformation, Request, Response, parse_token
from antechamber.broker.rules import load_rules
from antechamber.broker.settings import BrokerSettings
from antechamber.config import Config
from antechamber.engine.builtin.tokens import parse_tokenizer
from antechamber.engine.builtin.weights import Architecture, parse_tensors
from antechamber.errors import AgentError, ConfigError
from antechamber.evidence import gpu_chain, initdata
from antechamber.evidence.anchors import NVIDIA_ROOT_SPKI, Anchors
from antechamber.evidence.bundle import MAX_BUNDLE, parse_bundle
from antechamber.evidence.chain import _verify_signer
from antechamber.evidence.collateral import TdxCollateral, open_collateral
from antechamber.evidence.composite import CompositeEvidence
from antechamber.evidence.eventlog import EL_HEADER, parse_log, runtime_events
from antechamber.evidence.gpu import Report
from antechamber.evidence.policy import load_policy
from antechamber.evidence.tdx import Quote
from antechamber.gateway import agent_link
from antechamber.model.inert import ConfigGuard
from antechamber.model.manifest import Golden, Header, Manifest
from antechamber.simulator.intel import IntelPki, td_body

MIB = 1 << 20
Parse = Callable[[bytes], object]


@contextmanager
def memory(most: int) -> Iterator[None]:
    """At most `most` bytes more, of Python's own and of the process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert peak <= most, f"{peak / MIB:.1f} MiB, at most {most / MIB:.1f}"
    assert grown <= most + 64 * MIB, f"the process grew by {grown / MIB:.1f} MiB"


def refused(parse: Parse, raw: bytes, most: int = 4 * MIB, why: str = "") -> str:
    with memory(len(raw) * 3 + most), pytest.raises(AgentError) as error:
        parse(raw)
    assert len(str(error.value)) < 5000
    assert why in str(error.value)
    return error.value.code


def config(raw: bytes) -> object:
    return strict.load_yaml(raw, Config, error=ConfigError, family="config")


def settings(raw: bytes) -> object:
    return strict.load_yaml(raw, BrokerSettings, error=ConfigError, family="broker")


# -- YAML: antechamber.yaml, policies, rules, broker.yaml

YAML: tuple[tuple[Parse, str], ...] = (
    (config, "config"), (load_policy, "policy"), (load_rules, "rules"),
    (settings, "broker"),
)  # fmt: skip
LAUGHS = b"a: &a [x, x, x]\n" + b"".join(
    b"%c: &%c [*%c, *%c, *%c]\n" % (c, c, c - 1, c - 1, c - 1) for c in b"bcdefghij"
)
YAML_BOMBS = {
    "billion laughs": LAUGHS,
    "an alias of itself": b"version: &a [*a]\n",
    "merged": b"x: &x {a: 1}\nversion: {<<: *x}\n",
    "deep lists": b"version: " + b"[" * 20_000,
    "deep mappings": b"{version: " * 20_000,
    "a number without end": b"version: 0x" + b"f" * 6000,
    "a number in base 60": b"version: 1" + b":1" * 6000,
    "over 1 MiB": b"# " + b"x" * MIB,
    "no character": b'version: "\\UFFFFFFFF"',
}


@pytest.mark.parametrize("bomb", YAML_BOMBS)
@pytest.mark.parametrize(("parse", "family"), YAML, ids=lambda x: x if isinstance(x, str) else "")
def test_yaml_bomb_is_refused(parse: Parse, family: str, bomb: str) -> None:
    """`a number without end` was found by hand: 0x has no limit of digits, and printing it raised ValueError."""
    assert refused(parse, YAML_BOMBS[bomb]) == f"{family}.syntax"


# -- TOML: init-data, which the host writes

HEAD = b'version = "0.1.0"\nalgorithm = "sha384"\n[data]\n'
TOML_BOMBS = {
    "a dotted key": (b"a" + b".a" * 8000 + b" = 1", "initdata.toml"),
    "a dotted key, quoted": (b'"a"' + b' . "\\"."' * 7000 + b" = 1", "initdata.toml"),
    "a dotted table": (b"[a" + b".a" * 8000 + b"]", "initdata.toml"),
    "a dotted key in our own settings": (
        HEAD + b"\"antechamber.toml\" = 'a" + b".a" * 8000 + b" = 1'", "initdata.toml",
    ),
    "deep arrays": (b"a = " + b"[" * 60_000, "initdata.toml"),
    "deep tables": (b"a = " + b"{a = " * 12_000, "initdata.toml"),
    "a number without end": (b'version = "0.1.0"\ndata = {}\nalgorithm = 0x' + b"f" * 60_000, "initdata.algorithm"),
    "a setting without end": (
        HEAD + b"\"antechamber.toml\" = 'TLS_INSIDE_ENCLAVE = 0x" + b"f" * 60_000 + b"'", "initdata.tls",
    ),
    "over 64 KiB": (HEAD + b"#" * (64 << 10), "initdata.size"),
}  # fmt: skip


@pytest.mark.parametrize("bomb", TOML_BOMBS)
def test_toml_bomb_is_refused(bomb: str) -> None:
    """Found by hand: 64 KiB of `a.a.a` took 4 GiB and half a minute; numbers past 4300 digits, ValueError."""
    raw, code = TOML_BOMBS[bomb]
    assert refused(initdata.parse, raw, most=16 * MIB) == code


def test_toml_with_long_names_in_its_texts_is_read() -> None:
    """The limit is for keys: what a policy in init-data may name stays within it."""
    name = ".".join(["a"] * 32)
    assert initdata.parse(HEAD + f'"policy.rego" = "{name}"\n'.encode()).data == {"policy.rego": name}


# -- JSON: messages, Evidence, collateral, tokens, manifests, the agent's socket

TDX = TdxCollateral.parse
JSON: tuple[tuple[str, Parse, str, int], ...] = (
    ("request", Request.parse, "kbs.json", 64 << 10),
    ("challenge", Challenge.parse, "kbs.json", 16 << 10),
    ("attestation", Attestation.parse, "kbs.json kbs.structure", 8 * MIB),
    ("response", Response.parse, "kbs.json", MIB),
    ("error", ErrorInformation.parse, "kbs.json", 64 << 10),
    ("token answer", parse_token, "kbs.json", 8 * MIB),
    ("devices", lambda raw: CompositeEvidence(b"q", None, raw.decode("latin-1")).devices(), "evidence.json", 4 * MIB),
    ("bundle", parse_bundle, "bundle.json", MAX_BUNDLE),
    ("collateral set", TDX, "collateral.json", 8 * MIB),
    (
        "collateral envelope",
        lambda raw: open_collateral(raw, bytes(32), nonce=None, floor=0),
        "collateral.json",
        8 * MIB,
    ),
    ("header", Header.parse, "model.header", 4096),
    ("manifest", Manifest.parse, "model.manifest", 256 * MIB),
    ("golden", Golden.parse, "model.golden", MIB),
    ("config.json", Architecture.parse, "engine.json", MIB),
    ("tokenizer.json", parse_tokenizer, "engine.json", 64 * MIB),
    ("request to the agent", parse_request, "handover.op", 64 << 10),
    ("answer of the agent", agent_link.parse, "agent.json", 8 * MIB),
)
JSON_BOMBS = {
    "deep lists": lambda limit: b"[" * min(limit, 100_000),
    "deep objects": lambda limit: b'{"a":' * min(limit // 5, 100_000),
    "a number of 5000 digits": lambda limit: b"1" * min(limit, 5000),
    "NaN": lambda limit: b'{"a": NaN}',
    "Infinity": lambda limit: b'{"a": [-Infinity]}',
    "a key twice": lambda limit: b'{"a": 1, "a": 2}',
    "half a pair": lambda limit: b'{"a": "\\ud800"}',
    "UTF-16": lambda limit: '{"a": 1}'.encode("utf-16"),
}


@pytest.mark.parametrize("bomb", JSON_BOMBS)
@pytest.mark.parametrize(("parse", "codes", "limit"), [one[1:] for one in JSON], ids=[one[0] for one in JSON])
def test_json_bomb_is_refused(parse: Parse, codes: str, limit: int, bomb: str) -> None:
    raw = JSON_BOMBS[bomb](limit)
    assert refused(parse, raw) in codes.split()


@pytest.mark.parametrize(
    ("parse", "codes", "limit"),
    [one[1:] for one in JSON if one[3] <= 8 * MIB],
    ids=[o[0] for o in JSON if o[3] <= 8 * MIB],
)
def test_json_over_its_limit_is_not_read(parse: Parse, codes: str, limit: int) -> None:
    """Blanks are no JSON either, and the code is the same: the size must be the reason."""
    raw = b" " * (limit + 1)
    assert refused(parse, raw, most=MIB, why=f"{limit + 1} bytes, at most {limit}") in codes.split()


@pytest.mark.parametrize(
    ("parse", "code", "size"),
    [
        (Attestation.parse, "kbs.structure", 8 * MIB - 4), (parse_bundle, "bundle.json", MAX_BUNDLE - 4),
        (lambda raw: CompositeEvidence(b"q", None, raw.decode()).devices(), "evidence.json", 4 * MIB - 4),
    ],
    ids=["attestation", "bundle", "devices"],
)  # fmt: skip
def test_json_of_very_many_values_is_counted_first(parse: Parse, code: str, size: int) -> None:
    """A bundle of them took 200 MiB before it was refused."""
    raw = b"[" + b"{}," * (size // 3 - 1) + b"{}]"
    assert refused(parse, raw, most=MIB) == code


# -- binary: sizes and counts that are not there

QUOTE = IntelPki(1_790_000_000, seed=bytes(32)).quote_v4(td_body())
U32 = b"\xff\xff\xff\xff"
RECORD = struct.pack("<IIIH", 4, 6, 1, 12) + bytes(48) + struct.pack("<I", 0)
HUGE = b'{"w":{"dtype":"F32","shape":[1073741824,1024],"data_offsets":[0,4398046511104]}}'
BIG_TENSOR = len(HUGE).to_bytes(8, "little") + HUGE
BINARY: dict[str, tuple[Parse, bytes, str]] = {
    "quote: size of the signature data": (Quote.parse, QUOTE[:632] + U32 + QUOTE[636:], "quote.signature-data"),
    "quote: size of the certification data": (Quote.parse, QUOTE[:766] + U32 + QUOTE[770:], "quote.certification"),
    "quote: megabytes of padding": (Quote.parse, QUOTE + bytes(8 * MIB), "quote.size"),
    "quote: a long chain": (
        Quote.parse, QUOTE[:632] + struct.pack("<I", 100_000) + bytes(100_000), "quote.signature-data",
    ),
    "log: algorithms": (parse_log, EL_HEADER[:56] + U32 + EL_HEADER[60:], "eventlog.header"),
    "log: size of the header": (parse_log, EL_HEADER[:28] + U32 + EL_HEADER[32:], "eventlog.short"),
    "log: digests of an event": (
        parse_log, EL_HEADER + struct.pack("<II", 4, 6) + U32 + bytes(64), "eventlog.algorithm",
    ),
    "log: size of an event": (parse_log, EL_HEADER + RECORD[:-4] + U32, "eventlog.short"),
    "log: events": (parse_log, EL_HEADER + RECORD * 9000, "eventlog.events"),
    "log: megabytes": (parse_log, EL_HEADER + b"\xff" * (5 * MIB), "eventlog.size"),
    "log: runtime events": (lambda raw: runtime_events(parse_log(raw)), EL_HEADER + RECORD * 65, "eventlog.events"),
    "report: size of the measurements": (
        Report.parse,
        bytes.fromhex("11e001ff") + bytes(33) + bytes.fromhex("11600000") + b"\x40" + U32,
        "gpu-report.size",
    ),
    "report: megabytes": (Report.parse, bytes(MIB), "gpu-report.size"),
    "safetensors: size of the header": (lambda raw: list(parse_tensors(raw)), b"\xff" * 7 + b"\x7f{}", "engine.model"),
    "safetensors: a tensor that is not there": (
        lambda raw: list(parse_tensors(raw)),
        BIG_TENSOR,
        "engine.model",
    ),
    "DER: a certificate longer than there is": (
        lambda raw: gpu_chain._parse_chain(raw),
        b"-----BEGIN CERTIFICATE-----\nMIT/////\n-----END CERTIFICATE-----\n" * 5, "gpu.chain",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BINARY)
def test_binary_bomb_is_refused(bomb: str) -> None:
    parse, raw, code = BINARY[bomb]
    assert refused(parse, raw, most=MIB) == code


# -- chains

PEM = IntelPki(1_790_000_000, seed=bytes(32)).root_pem


def test_long_gpu_chain_is_refused() -> None:
    for count in (7, 200):
        assert refused(gpu_chain._parse_chain, PEM.encode() * count, most=MIB) == "gpu.chain"


def test_long_collateral_chain_is_refused() -> None:
    anchors = Anchors(None, NVIDIA_ROOT_SPKI)
    assert (
        refused(lambda raw: _verify_signer(raw.decode(), anchors.root_key_id, 1_790_000_000), PEM.encode() * 15)
        == "collateral.role"
    )
    chain = PEM * 100
    collateral = IntelPki(1_790_000_000, seed=bytes(32)).collateral() | {"pck_crl_issuer_chain": chain}
    assert refused(TDX, json.dumps(collateral).encode()) == "collateral.value"


# -- compression: nothing is ever inflated

ZEROS = gzip.compress(bytes(64 * MIB))


def test_zipped_jwe_is_refused() -> None:
    header = jwe_target._header(jwe_target.seeds()[0]) | {"zip": "DEF"}
    raw = jwe_target.resealed(0, header, ZEROS)
    assert refused(jwe_target.keys()[0].open, raw, most=MIB) == "broker.jwe"


def test_zipped_token_is_refused() -> None:
    """RFC 7516's `zip` is no member of a JWS: it changes nothing, and what it stands for does not parse."""
    text = token_target.signed(0, token_target.header(zip="DEF"), token_target.claims(eat_profile="x" * 300_000))[1:]
    assert refused(lambda raw: token_target._ear(raw.decode()), text, most=MIB) == "ear.shape"


def test_compressed_body_is_never_inflated_by_the_broker(tmp_path: Path) -> None:
    with running(tmp_path / "broker") as rig:
        plain, headers, _ = rig.raw("POST", PREFIX + "/auth", auth_body())
        assert plain == 200
        cookie = cookie_of(headers)
        with memory(16 * MIB):
            for path, body in (("/auth", ZEROS[: 60 << 10]), ("/attest", ZEROS)):
                status, _, said = rig.raw("POST", PREFIX + path, body, Content_Encoding="gzip", Cookie=cookie)
                assert status == 401
                assert "kbs.json" in ErrorInformation.parse(said).detail


def test_compressed_body_is_never_inflated_by_the_gateway() -> None:
    with gateway() as world, memory(16 * MIB):
        status, _, body = world.ask(
            "POST", "/v1/chat/completions", ZEROS[: 60 << 10], headers={"content-encoding": "gzip"}
        )
        assert (status, json.loads(body)["error"]["code"]) == (415, "request.encoding")
        assert not world.engine.requests


# -- a model's own files


def test_configuration_that_cannot_be_read_is_not_called_harmless() -> None:
    def guard(raw: bytes) -> None:
        one = ConfigGuard("config.json")
        one.update(memoryview(raw))
        one.finish()

    for raw in (b"[" * 100_000, b"1" * 5000, b'{"a":' * 50_000, b" " * (17 * MIB)):
        assert refused(guard, raw) == "model.code"


def test_token_of_a_time_without_end_is_refused() -> None:
    """Found by hand: how long ago that was is a number of 4301 digits, and printing it raised ValueError."""
    text = token_target.signed(0, token_target.header(), token_target.claims(exp=-(10**4300 - 1)))[1:]
    assert refused(lambda raw: token_target._ear(raw.decode()), text) == "ear.shape"
