"""NVIDIA in software: the device identity chain and signed SPDM 1.1 measurement reports. Only the root differs.

Source: DMTF DSP0274 1.1, GET_MEASUREMENTS; opaque fields as in NVIDIA's attestation SDK.
"""

import datetime as dt
import hashlib
import os
import struct
from dataclasses import dataclass
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from antechamber.evidence.composite import GpuEvidence
from antechamber.simulator import authority
from antechamber.simulator.asn1 import SHA384, integer, octets, oid, sequence, tlv
from antechamber.simulator.authority import Issued, Subject, Window, pem

Mode = Literal["spt", "mpt", "ppcie"]
DRIVER = "570.124.06"
_FLAGS: dict[Mode, int] = {"spt": 0, "mpt": 1, "ppcie": 2}
_WINDOW = Window(dt.datetime(2020, 10, 17, tzinfo=dt.UTC), dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC))
_REQUEST = bytes.fromhex("11e001ff")  # SPDM 1.1 GET_MEASUREMENTS, signature asked for, all blocks
_RESPONSE = bytes.fromhex("11600000")
_TLV = struct.Struct("<HH")
_BLOCK = struct.Struct("<BBHBH48s")
_ON, _OFF = b"\xaa", b"\x55"


@dataclass(frozen=True, slots=True)
class Chip:
    """One family of GPUs: names in certificates, and what the firmware says of itself."""

    arch: str  # HOPPER
    name: str  # GH100
    vbios: str
    project: bytes
    pci_device: int
    nvml_arch: int


HOPPER = Chip("HOPPER", "GH100", "96.00.9F.00.01", b"1010", 0x2331, 9)
BLACKWELL = Chip("BLACKWELL", "GB100", "97.00.D9.00.35", b"G525", 0x2901, 10)
CHIPS = {chip.arch: chip for chip in (HOPPER, BLACKWELL)}


@dataclass(frozen=True, slots=True)
class SimGpuIdentity:
    """One GPU: its public device identifier, its chain (PEM, leaf first) and the key that signs reports."""

    chip: Chip
    pdi: bytes  # 8
    uuid: str
    chain: str
    leaf: Issued
    fwid: bytes  # 48


class NvidiaPki:
    """One simulated NVIDIA. The same `seed` gives the same root and the same devices."""

    def __init__(self, *, seed: bytes | None = None, chip: Chip = HOPPER) -> None:
        self.chip = chip
        self._seed = os.urandom(32) if seed is None else seed
        self._root = self._ca("NVIDIA Device Identity CA", None, organisation="NVIDIA")
        self._identity = self._ca(f"NVIDIA {chip.name} Identity", self._root)
        self._ica = self._ca(f"NVIDIA {chip.name} Provisioner ICA 1", self._identity)

    @property
    def root_pem(self) -> str:
        return pem(self._root.certificate)

    def of(self, chip: Chip) -> "NvidiaPki":
        """The same vendor, for another chip: the root stays."""
        return NvidiaPki(seed=self._seed, chip=chip)

    def device(self, index: int) -> SimGpuIdentity:
        """The device number `index`: the same one each time."""
        pdi = self._bytes(f"pdi/{index}", 8)
        brom = self._brom(pdi)
        fwid = hashlib.sha384(f"simulated {self.chip.name} FMC".encode()).digest()
        leaf = self._leaf(pdi, brom, fwid)
        issuers = (leaf, brom, self._ica, self._identity, self._root)
        number = self._bytes(f"uuid/{index}", 16).hex()
        uuid = f"GPU-{number[:8]}-{number[8:12]}-{number[12:16]}-{number[16:20]}-{number[20:]}"
        return SimGpuIdentity(self.chip, pdi, uuid, "".join(pem(i.certificate) for i in issuers), leaf, fwid)

    def _bytes(self, label: str, size: int) -> bytes:
        return authority.derive_bytes(self._seed, f"nvidia/{label}", size)

    def _key(self, label: str) -> ec.EllipticCurvePrivateKey:
        return authority.derive_key(self._seed, f"nvidia/{label}", ec.SECP384R1())

    def _ca(self, name: str, issuer: Issued | None, organisation: str = "NVIDIA Corporation") -> Issued:
        serial = int.from_bytes(b"\x2d" + self._bytes(f"serial/{name}", 15), "big")
        subject = Subject(
            name=authority.distinguished_name(name, ORGANIZATION_NAME=organisation), serial=serial, ca=True
        )
        return authority.issue(subject, self._key(name), issuer, _WINDOW, hashes.SHA384())

    def _brom(self, pdi: bytes) -> Issued:
        serial = b"\x41" + pdi  # how a GPU's certificate names its device
        subject = Subject(
            name=_device_name(f"{self.chip.name} A01 GSP BROM", serial),
            serial=int.from_bytes(serial, "big"),
            ca=True,
            uses=("key_cert_sign",),
        )
        return authority.issue(subject, self._key(f"brom/{pdi.hex()}"), self._ica, _WINDOW, hashes.SHA384())

    def _leaf(self, pdi: bytes, brom: Issued, fwid: bytes) -> Issued:
        key = self._key(f"leaf/{pdi.hex()}")
        serial = b"\x53" + self._bytes(f"leaf-serial/{pdi.hex()}", 19)
        subject = Subject(
            name=_device_name(f"{self.chip.name} A01 GSP FMC LF", serial),
            serial=int.from_bytes(serial, "big"),
            uses=("digital_signature",),
            extensions=(_spdm_name(self.chip, pdi), _firmware_identity(self.chip, key.public_key(), fwid)),
            basic_constraints=False,  # as NVIDIA's
        )
        return authority.issue(subject, key, brom, _WINDOW, hashes.SHA384())


def report(
    device: SimGpuIdentity,
    nonce: bytes,
    *,
    driver: str = DRIVER,
    vbios: str | None = None,
    mode: Mode = "spt",
    devtools: bool = False,
) -> bytes:
    """A signed SPDM 1.1 report over a nonce of 32 bytes: 64 blocks, opaque data in the older form."""
    if len(nonce) != 32:
        raise ValueError(f"a nonce has 32 bytes, not {len(nonce)}")
    blocks = b"".join(_block(device.chip, index, driver, devtools) for index in range(1, 65))
    opaque = _opaque(device, driver, vbios or device.chip.vbios, mode)
    signed = b"".join((
        _REQUEST, nonce, b"\0", _RESPONSE, bytes([64]), len(blocks).to_bytes(3, "little"), blocks,
        os.urandom(32), len(opaque).to_bytes(2, "little"), opaque,
    ))  # fmt: skip
    return signed + authority.raw_signature(device.leaf.key, hashes.SHA384(), signed)


def evidence(device: SimGpuIdentity, signed: bytes) -> GpuEvidence:
    return GpuEvidence(device.chip.arch, device.uuid, signed, device.chain.encode())


def _block(chip: Chip, index: int, driver: str, devtools: bool) -> bytes:
    """DMTF measurement block of 48 bytes. Developer tools change what the firmware measures."""
    text = f"simulated {chip.name} {driver} block {index}{' devtools' if devtools else ''}"
    return _BLOCK.pack(index, 1, 51, 1, 48, hashlib.sha384(text.encode()).digest())


def _opaque(device: SimGpuIdentity, driver: str, vbios: str, mode: Mode) -> bytes:
    protected_pcie = _ON if mode == "ppcie" else _OFF
    fields: list[tuple[int, bytes]] = [
        (6, _vbios(vbios)),
        (14, (0x3B1).to_bytes(4, "little")),
        (15, b"882".ljust(9, b"\0")),
        (16, b"0".ljust(5, b"\0")),
        (17, device.chip.project + b"\0"),
        (18, b"0200\0"),
        (19, b"\0\0"),
        (3, driver.encode() + b"\0"),
        (4, bytes(8)),
        (12, bytes(256)),  # 64 counters
        (13, bytes(4)),
        (11, _OFF),  # NVDEC0
        (20, device.fwid),
        (21, protected_pcie),
        (33, b"\x07\x07"),
        (35, device.chip.name.encode() + b"\0"),
        (34, (1).to_bytes(2, "little")),
        (36, _FLAGS[mode].to_bytes(2, "little")),
    ]
    return b"".join(_TLV.pack(kind, len(value)) + value for kind, value in fields)


def _vbios(text: str) -> bytes:
    """8 bytes: the first four of `96.00.9F.00.01` reversed, the last, zeros."""
    parts = bytes(int(part, 16) for part in text.split("."))
    return parts[3::-1] + parts[4:5] + bytes(3)


def _device_name(common_name: str, serial: bytes) -> x509.Name:
    return authority.distinguished_name(
        common_name, ORGANIZATION_NAME="NVIDIA Corporation", COUNTRY_NAME="US", SERIAL_NUMBER=serial.hex().upper()
    )


def _spdm_name(chip: Chip, pdi: bytes) -> x509.SubjectAlternativeName:
    """DMTF device info. Source: DSP0274, otherName id-DMTF-device-info."""
    text = tlv(0x0C, f"NVIDIA:{chip.name}:{pdi.hex().upper()}".encode())
    return x509.SubjectAlternativeName([x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.412.274.1"), text)])


def _firmware_identity(chip: Chip, public: ec.EllipticCurvePublicKey, fwid: bytes) -> x509.UnrecognizedExtension:
    """FWID of the firmware that holds the leaf key: composite device ID on Hopper, DICE TcbInfo on Blackwell."""
    measured = sequence(oid(SHA384), octets(fwid))
    if chip is HOPPER:
        spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        value = sequence(integer(1), spki, measured)
        return x509.UnrecognizedExtension(x509.ObjectIdentifier("2.23.133.5.4.1"), value)
    names = tlv(0x80, b"NVIDIA") + tlv(0x81, f"{chip.name} A01 GSP".encode()) + tlv(0x82, b"01")
    numbers = tlv(0x83, b"\1") + tlv(0x84, b"\0") + tlv(0x85, b"\0")
    second = sequence(oid(SHA384), octets(bytes(48)))
    flags = tlv(0x87, bytes.fromhex("0500800000")) + tlv(0x88, bytes.fromhex("01c0")) + tlv(0x89, b"\0")
    value = sequence(names, numbers, tlv(0xA6, measured + second), flags)
    return x509.UnrecognizedExtension(x509.ObjectIdentifier("2.23.133.5.4.1.1"), value)
