import json
import random
from contextlib import suppress

import pytest
from fake_nvidia import LEGACY, NONCE, NOW, FakeDevice, blackwell, hopper, legacy, nvdaod, signed_part
from hypothesis import given
from hypothesis import strategies as st
from nvidia_vectors import ANCHORS, NVIDIA, b200, hgx, single
from nvidia_vectors import NOW as THEN
from vectors import needs_vectors

from antechamber.errors import AppraisalRefused, MalformedEvidence
from antechamber.evidence.composite import GpuEvidence, canonical
from antechamber.evidence.gpu_chain import GpuClaims, gpu_event, verify_device, verify_devices

HOPPER = "hopper/hopperAttestationReport.txt"


def verify(evidence: GpuEvidence, now: int = THEN) -> GpuClaims:
    return verify_device(evidence, nonce=evidence.report[4:36], anchors=ANCHORS, now=now)


@needs_vectors
@pytest.mark.parametrize(
    ("arch", "report", "chain", "fwid"),
    [
        ("HOPPER", HOPPER, "hopper/hopperCertChain.txt", True),
        ("HOPPER", "hopper/hopper-535-report.txt", "hopper/hopper-535-chain.txt", False),
        ("HOPPER", "hopper/hopper_coco_report1.txt", "hopper/hopper_coco_certs1.txt", True),
        ("BLACKWELL", "blackwell/blackwellAttestationReport.txt", "blackwell/blackwellCertChain.txt", True),
        ("LS10", "switch/switchAttestationReport.txt", "switch/switchCertChain.txt", False),
    ],
)
def test_verify_device_accepts_real_evidence(arch: str, report: str, chain: str, fwid: bool) -> None:
    claims = verify(single(arch, report, chain))
    assert (claims.arch, claims.fwid_matched) == (arch, fwid)
    assert not claims.measurements_appraised
    assert not claims.revocation_appraised


@needs_vectors
@pytest.mark.parametrize("vector", ["hopperClaimsv3", "switch"])
def test_claims_are_those_of_nvidias_service(vector: str) -> None:
    nras = json.loads((NVIDIA / f"nras/{vector}_decoded.json").read_text())
    theirs = next(iter(nras.values()))
    if vector == "switch":
        ours = verify(single("LS10", "switch/switchAttestationReport.txt", "switch/switchCertChain.txt"))
        assert ours.vbios_version == theirs["x-nvidia-switch-bios-version"]
    else:
        ours = verify(single("HOPPER", HOPPER, "hopper/hopperCertChain.txt"))
        assert ours.driver_version == theirs["x-nvidia-gpu-driver-version"]
        assert ours.vbios_version == theirs["x-nvidia-gpu-vbios-version"]
    assert (ours.ueid, ours.chip) == (theirs["ueid"], theirs["hwmodel"])


@needs_vectors
def test_verify_devices_accepts_real_machines() -> None:
    for devices, mode in ((hgx("gpu_evidence"), "ppcie"), (hgx("switch_evidence"), "unknown"), (b200(), "mpt")):
        claims = verify_devices(devices, nonce=devices[0].report[4:36], anchors=ANCHORS, now=THEN)
        assert len({c.brom_serial for c in claims}) == len(devices)
        assert {c.mode for c in claims} == {mode}


@needs_vectors
@pytest.mark.parametrize(
    ("report", "chain", "code"),
    [
        ("negative/hopperAttestationReportInvalidSignature.txt", "hopper/hopperCertChain.txt", "gpu.signature"),
        (HOPPER, "negative/hopper_cert_chain_case2.txt", "gpu.chain"),
        (HOPPER, "negative/hopper_cert_chain_case3.txt", "gpu.chain"),
        (HOPPER, "negative/hopper_cert_chain_case4.txt", "gpu.chain"),
        (HOPPER, "hopper/hopper_coco_certs1.txt", "gpu.signature"),
    ],
)
def test_verify_device_refuses_real_negatives(report: str, chain: str, code: str) -> None:
    with pytest.raises(AppraisalRefused) as refused:
        verify(single("HOPPER", report, chain))
    assert refused.value.code == code


@pytest.mark.parametrize("opaque", [legacy(), nvdaod()])
def test_verify_device_accepts_both_opaque_forms(opaque: bytes) -> None:
    device = FakeDevice()
    evidence = device.evidence(device.sign(signed_part(opaque)))
    claims = verify_device(evidence, nonce=NONCE, anchors=device.anchors, now=NOW)
    assert (claims.driver_version, claims.vbios_version) == ("570.124.06", "96.00.9F.00.01")
    assert (claims.mode, claims.fwid_matched) == ("spt", True)


def test_verify_device_reads_the_fwid_of_blackwell() -> None:
    device = FakeDevice(blackwell())
    report = device.sign(signed_part(legacy((*LEGACY, (35, b"GB100\0")))))
    claims = verify_device(device.evidence(report, arch="BLACKWELL"), nonce=NONCE, anchors=device.anchors, now=NOW)
    assert claims.fwid_matched
    assert claims.chip == "GB100 A01 GSP BROM"


def test_verify_device_says_where_the_report_has_no_fwid() -> None:
    device = FakeDevice()
    report = device.sign(signed_part(legacy(f for f in LEGACY if f[0] != 20)))
    claims = verify_device(device.evidence(report), nonce=NONCE, anchors=device.anchors, now=NOW)
    assert not claims.fwid_matched


@pytest.mark.parametrize("length", [3, 4, 6])
def test_verify_device_takes_chains_of_three_to_six(length: int) -> None:
    chain = hopper()
    chain[2:4] = [type(chain[2])(f"NVIDIA intermediate {i}") for i in range(length - 3)]
    device = FakeDevice(chain)
    verify_device(device.evidence(), nonce=NONCE, anchors=device.anchors, now=NOW)


def test_claims_to_json_is_canonical_and_small() -> None:
    device = FakeDevice()
    claims = verify_device(device.evidence(), nonce=NONCE, anchors=device.anchors, now=NOW).to_json()
    assert len(canonical(claims)) < 1000
    assert claims["measurements_appraised"] is False
    assert claims["revocation_appraised"] is False
    assert (claims["secure_boot"], claims["debug"]) == (None, None)


def test_gpu_event_is_the_same_over_any_nonce_and_another_for_other_devices() -> None:
    def event(device: FakeDevice, nonce: bytes) -> str:
        evidence = device.evidence(device.sign(signed_part(nonce=nonce)))
        return gpu_event(verify_devices([evidence], nonce=nonce, anchors=device.anchors, now=NOW))

    device = FakeDevice()
    assert event(device, NONCE) == event(device, bytes(32))
    assert len({event(device, NONCE), event(FakeDevice(), NONCE), gpu_event(())}) == 3


def test_verify_devices_accepts_none() -> None:
    assert verify_devices([], nonce=NONCE, anchors=ANCHORS, now=NOW) == ()


DEVICE = FakeDevice()


@given(st.binary(max_size=300))
def test_verify_device_refuses_any_other_chain(pem: bytes) -> None:
    with pytest.raises(AppraisalRefused):
        verify_device(DEVICE.evidence(pem=pem), nonce=NONCE, anchors=DEVICE.anchors, now=NOW)


@given(st.randoms(use_true_random=False), st.integers(1, 3))
def test_verify_device_refuses_or_still_verifies_a_damaged_certificate(rng: random.Random, bits: int) -> None:
    from base64 import b64encode

    from cryptography.hazmat.primitives.serialization import Encoding

    ders = [bytearray(c.public_bytes(Encoding.DER)) for c in DEVICE.certificates]
    for _ in range(bits):
        der = rng.choice(ders)
        der[rng.randrange(len(der))] ^= 1 << rng.randrange(8)
    head, tail = b"-----BEGIN CERTIFICATE-----\n", b"\n-----END CERTIFICATE-----\n"
    pem = b"".join(head + b64encode(d) + tail for d in ders)
    with suppress(AppraisalRefused, MalformedEvidence):
        verify_device(DEVICE.evidence(pem=pem), nonce=NONCE, anchors=DEVICE.anchors, now=NOW)
        # whatever was flipped, the claims rest on signatures that hold
        assert b"".join(map(bytes, ders)) == b"".join(c.public_bytes(Encoding.DER) for c in DEVICE.certificates)
