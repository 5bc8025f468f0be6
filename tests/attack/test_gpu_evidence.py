"""What a host or a relay may do to GPU Evidence; each is refused by its own code."""

import datetime as dt
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from fake_nvidia import (
    FWID,
    LEGACY,
    NONCE,
    NOW,
    Certificate,
    FakeDevice,
    blackwell,
    composite_device_id,
    hopper,
    legacy,
    signed_part,
)
from nvidia_vectors import ANCHORS, single
from nvidia_vectors import NOW as THEN
from vectors import needs_vectors

from antechamber.errors import AgentError
from antechamber.evidence.anchors import Anchors
from antechamber.evidence.composite import GpuEvidence
from antechamber.evidence.gpu_chain import verify_device, verify_devices


def refusal(evidence: GpuEvidence, anchors: Anchors, *, nonce: bytes = NONCE, now: int = NOW) -> str:
    with pytest.raises(AgentError) as refused:
        verify_device(evidence, nonce=nonce, anchors=anchors, now=now)
    return refused.value.code


def test_replayed_report_is_refused() -> None:
    device = FakeDevice()
    assert refusal(device.evidence(), device.anchors, nonce=bytes(32)) == "gpu.nonce"


def test_report_without_a_nonce_to_compare_is_refused() -> None:
    device = FakeDevice()
    assert refusal(device.evidence(), device.anchors, nonce=b"") == "gpu.nonce"


@pytest.mark.parametrize("at", [36, 60, 3570, 3610, -97, -1])
def test_changed_report_is_refused(at: int) -> None:
    device = FakeDevice()
    raw = bytearray(device.sign(signed_part()))
    raw[at] ^= 1
    assert refusal(device.evidence(bytes(raw)), device.anchors).startswith(("gpu.signature", "gpu-report."))


@pytest.mark.parametrize("signature", [bytes(96), b"\xff" * 96, bytes(47) + b"\1" + bytes(47) + b"\1"])
def test_trivial_signature_is_refused(signature: bytes) -> None:
    device = FakeDevice()
    assert refusal(device.evidence(signed_part() + signature), device.anchors) == "gpu.signature"


def test_report_of_another_device_is_refused() -> None:
    device, other = FakeDevice(), FakeDevice()
    assert refusal(device.evidence(other.sign(signed_part())), device.anchors) == "gpu.signature"


def test_one_gpu_posing_as_two_is_refused() -> None:
    device = FakeDevice()
    pair = [device.evidence(), device.evidence()]  # two reports, each well signed
    with pytest.raises(AgentError) as refused:
        verify_devices(pair, nonce=NONCE, anchors=device.anchors, now=NOW)
    assert refused.value.code == "gpu.duplicate"


def test_foreign_root_is_refused() -> None:
    assert refusal(FakeDevice().evidence(), FakeDevice().anchors) == "gpu.anchor"


def test_simulated_gpu_is_refused_under_nvidias_anchor() -> None:
    assert refusal(FakeDevice().evidence(), ANCHORS) == "gpu.anchor"


def test_pinned_root_appended_to_a_foreign_chain_is_refused() -> None:
    device, pinned = FakeDevice(), FakeDevice()
    pem = device.pem + pinned.certificates[-1].public_bytes(Encoding.PEM)
    assert refusal(device.evidence(pem=pem), pinned.anchors) == "gpu.chain"


def test_pinned_root_in_place_of_the_foreign_one_is_refused() -> None:
    device, pinned = FakeDevice(), FakeDevice()
    device.certificates[-1] = pinned.certificates[-1]
    assert refusal(device.evidence(), pinned.anchors) == "gpu.chain"


def test_root_with_the_pinned_key_that_it_does_not_hold_is_refused() -> None:
    """The SPKI alone is public: a root must also be signed by that key."""
    device, pinned = FakeDevice(), FakeDevice()
    mallory = ec.generate_private_key(ec.SECP384R1())
    name = pinned.certificates[-1].subject
    fake = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(pinned.issuers[-1].public_key())
        .serial_number(1)
        .not_valid_before(dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
        .not_valid_after(dt.datetime(9999, 1, 1, tzinfo=dt.UTC))
        .sign(mallory, hashes.SHA384())
    )
    device.certificates[-1] = fake
    assert refusal(device.evidence(), pinned.anchors) == "gpu.chain"


def test_leaf_that_issues_another_is_refused() -> None:
    """A stolen firmware key must not make new devices."""
    chain = [*hopper()[:1], Certificate("GH100 A01 GSP FMC LF", ca=None, key_cert_sign=False), *hopper()[1:]]
    device = FakeDevice(chain)
    assert refusal(device.evidence(), device.anchors) == "gpu.chain"


@pytest.mark.parametrize(
    "issuer",
    [{"ca": False}, {"ca": None}, {"key_cert_sign": False}, {"path_length": 0}],
    ids=["not a CA", "no constraints", "no keyCertSign", "path too long"],
)
def test_issuer_that_may_not_issue_is_refused(issuer: dict[str, object]) -> None:
    chain = hopper()
    chain[2] = Certificate("NVIDIA GH100 Provisioner ICA 1", **issuer)  # type: ignore[arg-type]
    device = FakeDevice(chain)
    assert refusal(device.evidence(), device.anchors) == "gpu.chain"


@pytest.mark.parametrize(("ca", "key_cert_sign"), [(True, True), (True, False), (None, True)])
def test_ca_posing_as_a_leaf_is_refused(ca: bool | None, key_cert_sign: bool) -> None:
    device = FakeDevice(hopper(ca=ca, key_cert_sign=key_cert_sign))
    assert refusal(device.evidence(), device.anchors) == "gpu.chain"


@pytest.mark.parametrize("at", range(5))
def test_weaker_curve_is_refused(at: int) -> None:
    chain = hopper()
    chain[at].curve = ec.SECP256R1()
    device = FakeDevice(chain)
    assert refusal(device.evidence(), device.anchors) == "gpu.chain"


@pytest.mark.parametrize("at", range(5))
def test_weaker_digest_is_refused(at: int) -> None:
    chain = hopper()
    chain[at].digest = hashes.SHA256()
    device = FakeDevice(chain)
    assert refusal(device.evidence(), device.anchors) == "gpu.chain"


@pytest.mark.parametrize("at", range(5))
def test_unknown_critical_extension_is_refused(at: int) -> None:
    chain = hopper()
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.5703.9"), b"\5\0")
    chain[at].extensions += ((unknown, True),)
    device = FakeDevice(chain)
    assert refusal(device.evidence(), device.anchors) == "gpu.chain"


@pytest.mark.parametrize("at", range(5))
def test_certificate_out_of_its_time_is_refused(at: int) -> None:
    for begin, end in ((dt.datetime(2020, 1, 1), dt.datetime(2026, 1, 1)), (dt.datetime(2030, 1, 1), None)):
        chain = hopper()
        chain[at].begin, chain[at].end = begin.replace(tzinfo=dt.UTC), (end or chain[at].end).replace(tzinfo=dt.UTC)
        device = FakeDevice(chain)
        assert refusal(device.evidence(), device.anchors) == "gpu.expired"


def test_another_family_is_refused() -> None:
    device = FakeDevice()
    for arch in ("BLACKWELL", "LS10", "", "hopper", "AMPERE"):
        assert refusal(device.evidence(arch=arch), device.anchors) == "gpu.arch"


def test_leaf_under_another_familys_brom_is_refused() -> None:
    device = FakeDevice([hopper()[0], *blackwell()[1:]])
    assert refusal(device.evidence(), device.anchors) == "gpu.arch"


def test_report_of_another_chip_is_refused() -> None:
    device = FakeDevice(blackwell())
    report = device.sign(signed_part(legacy((*LEGACY, (35, b"GB202\0")))))
    assert refusal(device.evidence(report, arch="BLACKWELL"), device.anchors) == "gpu.arch"


def test_switchs_blocks_posing_as_a_gpu_are_refused() -> None:
    device = FakeDevice()
    report = device.sign(signed_part(indices=range(1, 32)))
    assert refusal(device.evidence(report), device.anchors) == "gpu.arch"


@needs_vectors
def test_real_switch_posing_as_a_gpu_is_refused() -> None:
    switch = single("HOPPER", "switch/switchAttestationReport.txt", "switch/switchCertChain.txt")
    assert refusal(switch, ANCHORS, nonce=switch.report[4:36], now=THEN) == "gpu.arch"


def test_other_firmware_than_certified_is_refused() -> None:
    device = FakeDevice(hopper(extensions=(composite_device_id(bytes(48)),)))
    assert refusal(device.evidence(), device.anchors) == "gpu.fwid"


def test_leaf_that_certifies_no_firmware_is_refused() -> None:
    device = FakeDevice(hopper(extensions=()))
    assert refusal(device.evidence(), device.anchors) == "gpu.fwid"


def test_leaf_of_blackwell_with_hoppers_extension_is_refused() -> None:
    chain = blackwell()
    chain[0].extensions = (composite_device_id(),)
    device = FakeDevice(chain)
    assert refusal(device.evidence(arch="BLACKWELL"), device.anchors) == "gpu.fwid"


_OVERLONG = b"\x30\x41\xa6\x3f\x30\x3e" + bytes.fromhex("06096086480165030402020430") + FWID  # says 62, has 61


@pytest.mark.parametrize(
    "value", [_OVERLONG, b"", b"\x30", b"\x30\x84\xff\xff\xff\xff", b"\x30\x82\1", FWID, b"\xa6\x02\x30\x00"]
)
def test_damaged_firmware_extension_is_refused(value: bytes) -> None:
    chain = blackwell()
    chain[0].extensions = ((x509.UnrecognizedExtension(x509.ObjectIdentifier("2.23.133.5.4.1.1"), value), False),)
    device = FakeDevice(chain)
    assert refusal(device.evidence(arch="BLACKWELL"), device.anchors) == "gpu.fwid"


def test_report_without_a_driver_version_is_refused() -> None:
    device = FakeDevice()
    report = device.sign(signed_part(legacy(LEGACY[1:])))
    assert refusal(device.evidence(report), device.anchors) == "gpu-report.driver"


@pytest.mark.parametrize("junk", [b"\0", b"# comment\n", b"-----BEGIN PRIVATE KEY-----\n"])
def test_chain_with_something_else_in_it_is_refused(junk: bytes) -> None:
    device = FakeDevice()
    for pem in (junk + device.pem, device.pem + junk):
        assert refusal(device.evidence(pem=pem), device.anchors) == "gpu.chain"


def test_endless_chain_is_refused() -> None:
    device = FakeDevice()
    pem = device.pem + 2 * device.certificates[-1].public_bytes(Encoding.PEM)
    assert refusal(device.evidence(pem=pem), device.anchors) == "gpu.chain"


@pytest.mark.parametrize(
    ("read", "strange"),
    [
        (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x09"),  # version 10
        (b"\x06\x03\x55\x04\x03\x0c", b"\x06\x03\x55\x04\x03\x03"),  # a BIT STRING as name
        (b"\x06\x05\x2b\x81\x04\x00\x22", b"\x06\x05\x2b\x81\x04\x00\x7f"),  # a curve that nobody knows
        (b"\x06\x03\x55\x1d\x13", b"\x06\x03\x55\x1d\x0f"),  # key usage twice
    ],
    ids=["version", "name", "curve", "extension"],
)
@pytest.mark.parametrize("at", range(5))
def test_certificate_that_cannot_be_read_is_refused(read: bytes, strange: bytes, at: int) -> None:
    device = FakeDevice()
    ders = [c.public_bytes(Encoding.DER) for c in device.certificates]
    ders[at] = ders[at].replace(read, strange)
    pem = "".join(map(ssl.DER_cert_to_PEM_cert, ders)).encode()
    if ders[at] != device.certificates[at].public_bytes(Encoding.DER):  # a leaf has no basic constraints
        assert refusal(device.evidence(pem=pem), device.anchors) == "gpu.chain"


@pytest.mark.parametrize("at", range(5))
def test_certificate_that_stands_twice_is_refused(at: int) -> None:
    device = FakeDevice()
    pems = [c.public_bytes(Encoding.PEM) for c in device.certificates]
    for place in (at, 5):
        twice = [*pems[:place], pems[at], *pems[place:]]
        assert refusal(device.evidence(pem=b"".join(twice)), device.anchors) in ("gpu.chain", "gpu.anchor")
