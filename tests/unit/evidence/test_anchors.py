import json
import ssl
from contextlib import suppress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from vectors import VECTORS, needs_vectors

from antechamber.errors import ConfigError
from antechamber.evidence.anchors import Anchors
from antechamber.evidence.tdx import Quote
from antechamber.simulator.intel import IntelPki
from antechamber.simulator.nvidia import NvidiaPki


def parse(intel: str = "intel", nvidia: str = "nvidia") -> Anchors:
    return Anchors.parse(intel=intel, nvidia=nvidia, error=ConfigError, code="config.value")


def test_anchors_are_the_vendors_when_named() -> None:
    assert parse().vendors
    assert str(parse()) == "Intel, NVIDIA"


def test_anchors_are_not_the_vendors_when_either_is_simulated() -> None:
    for anchors in (parse(intel=IntelPki().root_pem), parse(nvidia=NvidiaPki().root_pem)):
        assert not anchors.vendors
        assert "simulated" in str(anchors)


@needs_vectors
def test_anchors_are_the_vendors_when_their_roots_are_spelled_out() -> None:
    """Roots of real evidence: tdx/quotes/cbdb5b2f and nvidia/roots."""
    quote = Quote.parse((VECTORS / "tdx/quotes/cbdb5b2f-v4-td10-90c06f000000.bin").read_bytes())
    intel = x509.load_pem_x509_certificates(quote.pck_chain)[-1].public_bytes(Encoding.PEM).decode()
    nvidia = (VECTORS / "nvidia/roots/verifier_device_root.pem").read_text()
    assert parse(intel=intel, nvidia=nvidia) == parse()


@pytest.mark.parametrize("pem", ["", "Intel", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_anchors_refuse_when_the_text_is_no_certificate(pem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(intel=pem)
    assert refused.value.code == "config.value"
    assert json.dumps(refused.value.detail)


def test_anchors_refuse_when_the_key_is_of_no_known_kind() -> None:
    der = ssl.PEM_cert_to_DER_cert(IntelPki().root_pem).replace(
        b"\x2a\x86\x48\xce\x3d\x02\x01", b"\x2a\x86\x48\xce\x3d\x02\x7f"
    )
    with pytest.raises(ConfigError) as refused:
        parse(nvidia=ssl.DER_cert_to_PEM_cert(der))
    assert refused.value.code == "config.value"


@given(st.text(max_size=80) | st.binary(max_size=80).map(lambda raw: ssl.DER_cert_to_PEM_cert(raw)))
def test_anchor_parses_or_refuses_any_text(text: str) -> None:
    with suppress(ConfigError):
        parse(intel=text)
    with suppress(ConfigError):
        parse(nvidia=text)
