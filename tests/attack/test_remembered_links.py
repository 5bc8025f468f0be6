"""What is remembered of certificates, a signature that verified, opens nothing that time, anchor or a byte closes."""

import datetime as dt
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding
from fake_nvidia import NONCE, NOW, FakeDevice, hopper

from antechamber.errors import AgentError
from antechamber.evidence import chain, gpu_chain
from antechamber.evidence.anchors import NVIDIA_ROOT_SPKI, Anchors
from antechamber.evidence.certificates import MAX_LINKS, verify_issued
from antechamber.evidence.chain import verify_quote
from antechamber.evidence.collateral import MAX_SETS, TdxCollateral
from antechamber.evidence.composite import GpuEvidence
from antechamber.evidence.gpu_chain import verify_device
from antechamber.evidence.tdx import Quote
from antechamber.simulator.intel import IntelPki, td_body


@pytest.fixture(autouse=True)
def _empty_memory() -> None:
    for memory in (verify_issued, chain._pck_chain, chain._signer, gpu_chain._verified_chain):
        memory.cache_clear()


def refusal(run: Callable[[], object]) -> str:
    with pytest.raises(AgentError) as refused:
        run()
    return refused.value.code


def gpu(evidence: GpuEvidence, anchors: Anchors, now: int = NOW) -> None:
    verify_device(evidence, nonce=NONCE, anchors=anchors, now=now)


@pytest.mark.parametrize("at", range(5))
def test_gpu_chain_that_is_remembered_is_refused_once_a_certificate_is_over(at: int) -> None:
    links = hopper()
    links[at].end = dt.datetime.fromtimestamp(NOW + 60, dt.UTC)
    device = FakeDevice(links)
    evidence = device.evidence()
    gpu(evidence, device.anchors)
    gpu(evidence, device.anchors, NOW + 60)
    assert refusal(lambda: gpu(evidence, device.anchors, NOW + 61)) == "gpu.expired"


def test_gpu_chain_that_is_remembered_is_refused_under_another_anchor() -> None:
    device, other = FakeDevice(), FakeDevice()
    gpu(device.evidence(), device.anchors)
    assert refusal(lambda: gpu(device.evidence(), other.anchors)) == "gpu.anchor"


@pytest.mark.parametrize("at", range(5))
def test_gpu_chain_that_is_remembered_is_refused_with_one_byte_changed(at: int) -> None:
    device = FakeDevice()
    gpu(device.evidence(), device.anchors)
    for where in (-1, -60, 15, 200):  # in the signature twice, in the serial number, in a name or the key
        raw = bytearray(device.certificates[at].public_bytes(Encoding.DER))
        raw[where] ^= 1
        try:
            changed = x509.load_der_x509_certificate(bytes(raw)).public_bytes(Encoding.PEM)
        except ValueError:
            continue
        pems = [c.public_bytes(Encoding.PEM) for c in device.certificates]
        pems[at] = changed
        evidence = device.evidence(pem=b"".join(pems))
        assert refusal(lambda e=evidence: gpu(e, device.anchors)) in ("gpu.chain", "gpu.anchor")  # type: ignore[misc]


def test_leaf_of_one_remembered_chain_is_refused_under_the_issuers_of_another() -> None:
    device, other = FakeDevice(), FakeDevice()
    gpu(device.evidence(), device.anchors)
    gpu(other.evidence(), other.anchors)
    mixed = [device.certificates[0], *other.certificates[1:]]
    evidence = device.evidence(pem=b"".join(c.public_bytes(Encoding.PEM) for c in mixed))
    assert refusal(lambda: gpu(evidence, other.anchors)) == "gpu.chain"


def test_link_that_did_not_verify_is_asked_again() -> None:
    device, other = FakeDevice(), FakeDevice()
    for _ in range(2):
        with pytest.raises((ValueError, InvalidSignature)):
            verify_issued(device.certificates[0], other.certificates[1])
    assert verify_issued.cache_info().currsize == 0
    assert verify_issued.cache_info().misses == 2


def test_certificates_of_a_stranger_are_not_remembered() -> None:
    device, stranger = FakeDevice(), FakeDevice()
    assert refusal(lambda: gpu(stranger.evidence(), device.anchors)) == "gpu.anchor"
    assert verify_issued.cache_info().currsize == gpu_chain._verified_chain.cache_info().currsize == 0


def test_forged_chain_below_the_true_root_leaves_only_what_the_root_vouches_for() -> None:
    device, stranger = FakeDevice(), FakeDevice()
    mixed = [*stranger.certificates[:4], device.certificates[4]]
    evidence = stranger.evidence(pem=b"".join(c.public_bytes(Encoding.PEM) for c in mixed))
    assert refusal(lambda: gpu(evidence, device.anchors)) == "gpu.chain"
    assert verify_issued.cache_info().currsize == 1  # the root's own signature


def test_memory_is_bounded() -> None:
    assert verify_issued.cache_parameters()["maxsize"] == MAX_LINKS == 4096
    assert gpu_chain._verified_chain.cache_parameters()["maxsize"] == gpu_chain.MAX_CHAINS == 512
    assert chain._pck_chain.cache_parameters()["maxsize"] == chain.MAX_CHAINS == 512
    assert chain._signer.cache_parameters()["maxsize"] == MAX_SETS


def test_pck_chain_of_a_stranger_is_not_remembered() -> None:
    pki, stranger = IntelPki(NOW, seed=bytes(32)), IntelPki(NOW, seed=bytes([1]) * 32)
    anchors, quote = Anchors(pki.root_der, NVIDIA_ROOT_SPKI), Quote.parse(stranger.quote_v4(td_body()))
    collateral = TdxCollateral.build(pki.collateral())
    assert refusal(lambda: verify_quote(quote, collateral, anchors, NOW)) == "quote.anchor"
    assert chain._pck_chain.cache_info().currsize == 0


def test_pck_chain_that_is_remembered_is_refused_once_it_is_over() -> None:
    pki = IntelPki(NOW, seed=bytes(32))
    anchors, quote = Anchors(pki.root_der, NVIDIA_ROOT_SPKI), Quote.parse(pki.quote_v4(td_body()))
    verify_quote(quote, TdxCollateral.build(pki.collateral()), anchors, NOW)
    end = NOW + 3650 * 86_400
    later = TdxCollateral.build(pki.collateral(now=end))
    verify_quote(quote, later, anchors, end)
    assert refusal(lambda: verify_quote(quote, later, anchors, end + 1)) == "quote.chain-expired"


def test_quote_that_is_remembered_is_refused_under_another_anchor() -> None:
    pki, other = IntelPki(NOW, seed=bytes(32)), IntelPki(NOW, seed=bytes([1]) * 32)
    quote, collateral = Quote.parse(pki.quote_v4(td_body())), TdxCollateral.build(pki.collateral())
    verify_quote(quote, collateral, Anchors(pki.root_der, NVIDIA_ROOT_SPKI), NOW)
    wrong = Anchors(other.root_der, NVIDIA_ROOT_SPKI)
    assert refusal(lambda: verify_quote(quote, collateral, wrong, NOW)) == "quote.anchor"


def test_pck_that_is_remembered_is_refused_once_it_is_revoked() -> None:
    pki = IntelPki(NOW, seed=bytes(32))
    anchors, quote = Anchors(pki.root_der, NVIDIA_ROOT_SPKI), Quote.parse(pki.quote_v4(td_body()))
    verify_quote(quote, TdxCollateral.build(pki.collateral()), anchors, NOW)
    revoked = TdxCollateral.build(pki.collateral(revoke_pck=True))
    assert refusal(lambda: verify_quote(quote, revoked, anchors, NOW)) == "quote.revoked"
