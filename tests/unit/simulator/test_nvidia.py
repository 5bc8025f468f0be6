"""The simulated NVIDIA chain and reports have the structure of real ones."""

import struct

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from antechamber.simulator.nvidia import BLACKWELL, NvidiaPki, SimGpuIdentity, report

PKI = NvidiaPki(seed=bytes(32))
NONCE = bytes(range(32))


def chain(device: SimGpuIdentity) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(device.chain.encode())


def verify(device: SimGpuIdentity, signed: bytes) -> None:
    key = chain(device)[0].public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    r, s = (int.from_bytes(signed[i : i + 48], "big") for i in (len(signed) - 96, len(signed) - 48))
    key.verify(utils.encode_dss_signature(r, s), signed[:-96], ec.ECDSA(hashes.SHA384()))


def opaque(signed: bytes) -> dict[int, bytes]:
    at = 45 + int.from_bytes(signed[42:45], "little") + 32
    rest = signed[at + 2 : at + 2 + int.from_bytes(signed[at : at + 2], "little")]
    fields = {}
    while rest:
        kind, size = struct.unpack_from("<HH", rest)
        fields[kind], rest = rest[4 : 4 + size], rest[4 + size :]
    return fields


@pytest.mark.parametrize("pki", [PKI, NvidiaPki(chip=BLACKWELL)])
def test_device_chain_ends_in_the_root(pki: NvidiaPki) -> None:
    device = pki.device(0)
    certificates = chain(device)
    for child, parent in zip(certificates, [*certificates[1:], certificates[-1]], strict=True):
        child.verify_directly_issued_by(parent)
    assert certificates[-1] == x509.load_pem_x509_certificate(pki.root_pem.encode())
    assert certificates[1].serial_number == int.from_bytes(b"\x41" + device.pdi, "big")
    assert certificates[0].extensions[-1].value.public_bytes().count(device.fwid) == 1


def test_device_is_the_same_when_asked_again_and_another_for_another_index() -> None:
    assert PKI.device(1).chain == NvidiaPki(seed=bytes(32)).device(1).chain
    assert PKI.device(0).pdi != PKI.device(1).pdi
    assert PKI.device(0).uuid != PKI.device(1).uuid


def test_report_carries_nonce_versions_and_fwid_under_a_good_signature() -> None:
    device = PKI.device(0)
    signed = report(device, NONCE, driver="580.1", mode="ppcie")
    verify(device, signed)
    fields = opaque(signed)
    assert signed[4:36] == NONCE
    assert (fields[3], fields[20], fields[21], fields[36]) == (b"580.1\0", device.fwid, b"\xaa", b"\2\0")
    assert fields[6].hex() == "009f009601000000"  # as a real 96.00.9F.00.01


def test_report_does_not_verify_when_a_block_is_changed() -> None:
    device = PKI.device(0)
    signed = bytearray(report(device, NONCE))
    signed[60] ^= 1
    with pytest.raises(InvalidSignature):
        verify(device, bytes(signed))


def test_report_measures_otherwise_when_developer_tools_are_on() -> None:
    device = PKI.device(0)
    assert report(device, NONCE)[45:3565] != report(device, NONCE, devtools=True)[45:3565]
    assert report(device, NONCE)[45:3565] == report(device, NONCE)[45:3565]
