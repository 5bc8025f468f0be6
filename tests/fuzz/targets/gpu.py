"""GPU Evidence as KBS carries it: the list of devices, SPDM reports, opaque data, certificate chains."""

import base64
import json
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from fuzz.contract import NOW, VECTORS, Target
from fuzz.mutation import Mutator, pem_blocks, to_pem, unbase64

from antechamber.evidence.anchors import NVIDIA_ROOT_SPKI, Anchors, spki_sha256
from antechamber.evidence.composite import CompositeEvidence, GpuEvidence, additional_evidence
from antechamber.evidence.gpu import Opaque, Report
from antechamber.evidence.gpu_chain import gpu_event, verify_devices
from antechamber.simulator import authority, nvidia
from antechamber.simulator.nvidia import BLACKWELL, HOPPER, NvidiaPki

PKI = NvidiaPki(seed=bytes(32))
NONCE = bytes(range(32))
CHIPS = {chip.arch: PKI.of(chip) for chip in (HOPPER, BLACKWELL)}
DEVICES = {arch: pki.device(0) for arch, pki in CHIPS.items()}
ANCHORS = Anchors(None, spki_sha256(PKI._root.certificate))
REAL = Anchors(None, NVIDIA_ROOT_SPKI)


def run(data: bytes) -> None:
    devices = CompositeEvidence(b"quote", None, data.decode("utf-8", "surrogateescape")).devices()
    again = additional_evidence(devices)
    assert CompositeEvidence(b"quote", None, again).devices() == devices, "devices, written again, are others"
    if not devices:
        return
    report = Report.parse(devices[0].report)
    assert len(report.signed) + len(report.signature) + 1 >= len(devices[0].report)
    assert report.signed + report.signature == devices[0].report.removesuffix(b"\0") or devices[0].report.endswith(
        report.signature
    ), "bytes were dropped"
    opaque = report.opaque
    for read in (Opaque.driver_version, Opaque.vbios_version, Opaque.chip, Opaque.fwid, Opaque.mode):
        read.fget(opaque)  # type: ignore[attr-defined]
    anchors = ANCHORS if report.nonce == NONCE else REAL
    claims = verify_devices(devices, nonce=report.nonce, anchors=anchors, now=NOW)
    assert len(claims) == len(devices) == len({c.brom_serial for c in claims})
    assert gpu_event(claims).startswith("sha384:")
    for device in devices:
        require_signed(device)


def require_signed(device: GpuEvidence) -> None:
    """What verifies is signed by the key of the leaf in the Evidence."""
    report, leaf = Report.parse(device.report), pem_blocks(device.certificate)[0]
    key = x509.load_der_x509_certificate(leaf).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    r, s = (int.from_bytes(half, "big") for half in (report.signature[:48], report.signature[48:]))
    signature = authority.utils.encode_dss_signature(r, s)
    key.verify(signature, report.signed, ec.ECDSA(SHA384()))


def _text(*devices: GpuEvidence) -> bytes:
    return additional_evidence(devices).encode()


def _device(arch: str, report: bytes | None = None) -> GpuEvidence:
    device = DEVICES[arch]
    return nvidia.evidence(device, nvidia.report(device, NONCE) if report is None else report)


def seeds() -> list[bytes]:
    hopper = _device("HOPPER")
    second = CHIPS["HOPPER"].device(1)
    return [
        _text(hopper),
        _text(_device("BLACKWELL")),
        _text(hopper, hopper),
        _text(_device("HOPPER", nvidia.report(DEVICES["HOPPER"], NONCE, mode="ppcie") + b"\0")),
        _text(_device("HOPPER", resigned(nvdaod(hopper.report)))),
        _text(nvidia.evidence(second, nvidia.report(second, bytes(32)))),
        b"",
    ]


def _split(report: bytes) -> tuple[bytes, bytes, bytes]:
    """What precedes the size of the opaque data, the opaque data, the signature."""
    at = 4 + 32 + 1 + 4 + 4
    at += int.from_bytes(report[at - 3 : at], "little") + 32
    size = int.from_bytes(report[at : at + 2], "little")
    return report[:at], report[at + 2 : at + 2 + size], report[at + 2 + size :]


def nvdaod(report: bytes) -> bytes:
    """The same report with its opaque data in the newer form."""
    head, opaque, signature = _split(report)
    fields, at = b"", 0
    while at < len(opaque):
        kind, size = opaque[at : at + 2], int.from_bytes(opaque[at + 2 : at + 4], "little")
        fields += kind + b"\x86\0" + opaque[at + 2 : at + 4 + size]
        at += 4 + size
    newer = b"NVDAOD\0\0\2\0\0\0" + fields
    return head + len(newer).to_bytes(2, "little") + newer + signature


def resigned(report: bytes, arch: str = "HOPPER") -> bytes:
    return report[:-96] + authority.raw_signature(DEVICES[arch].leaf.key, SHA384(), report[:-96])


def vectors() -> list[bytes]:
    found = []
    for arch, folder, name in (
        ("HOPPER", "hopper", "hopper"),
        ("BLACKWELL", "blackwell", "blackwell"),
        ("LS10", "switch", "switch"),
    ):
        report, chain = (
            VECTORS / "nvidia" / folder / f"{name}{what}.txt" for what in ("AttestationReport", "CertChain")
        )
        if report.is_file():
            found.append(_text(GpuEvidence(arch, "", bytes.fromhex(report.read_text().strip()), chain.read_bytes())))
    return found


def mutate(m: Mutator, data: bytes) -> bytes:
    value = json.loads(data)
    listed = value["nvidia"]["device_evidence_list"]
    if m.often(0.1) or not listed:
        return json.dumps(m.json(value)).encode("utf-8", "replace")
    device: dict[str, Any] = m.random.choice(listed)
    arch = device["arch"] if device["arch"] in DEVICES else "HOPPER"
    report = unbase64(device["evidence"])
    match m.random.randrange(4):
        case 0:  # another report, well signed
            head, opaque, signature = _split(report)
            opaque = m.bytes(opaque) if m.often() else _field(m, opaque)
            size = len(opaque) if m.often(0.9) else m.random.randrange(1 << 16)
            report = resigned(head + (size & 0xFFFF).to_bytes(2, "little") + opaque + signature, arch)
        case 1:
            head, opaque, signature = _split(report)
            report = resigned(m.same_size(head) + len(opaque).to_bytes(2, "little") + opaque + signature, arch)
        case 2:  # another chain
            device["certificate"] = base64.b64encode(
                to_pem(_chain(m, arch, pem_blocks(unbase64(device["certificate"]))))
            ).decode()
        case _:
            key = m.random.choice(("arch", "uuid", "evidence", "certificate"))
            device[key] = m.text(device[key])
    if report != unbase64(device["evidence"]) and m.often(0.95):
        device["evidence"] = base64.b64encode(report).decode()
    return json.dumps(value, separators=(",", ":")).encode("utf-8", "replace")


def _field(m: Mutator, opaque: bytes) -> bytes:
    """One field of the older form changed, its size right."""
    fields, at = [], 0
    while at + 4 <= len(opaque):
        kind, size = int.from_bytes(opaque[at : at + 2], "little"), int.from_bytes(opaque[at + 2 : at + 4], "little")
        fields.append((kind, opaque[at + 4 : at + 4 + size]))
        at += 4 + size
    i = m.random.randrange(len(fields))
    kind, body = fields[i]
    fields[i] = (m.random.choice((kind, kind, 3, 6, 20, 21, 34, 35, 36)), m.bytes(body))
    return b"".join(k.to_bytes(2, "little") + (len(b) & 0xFFFF).to_bytes(2, "little") + b for k, b in fields)


def _chain(m: Mutator, arch: str, blocks: list[bytes]) -> list[bytes]:
    at = m.random.randrange(len(blocks))
    if m.often(0.15):
        return [*blocks[:at], *([blocks[at]] * m.random.choice((0, 2, 9))), *blocks[at + 1 :]]
    pki, device = CHIPS[arch], DEVICES[arch]
    brom = pki._brom(device.pdi)
    issuers = (brom.key, pki._ica.key, pki._identity.key, pki._root.key, pki._root.key)
    return [*blocks[:at], m.certificate(blocks[at], issuers[min(at, 4)], SHA384()), *blocks[at + 1 :]]


WORDS = (
    "nvidia", "device_evidence_list", "arch", "uuid", "evidence", "certificate", "HOPPER", "BLACKWELL", "LS10", "GH100",
    "GB100", "LS_10",
)  # fmt: skip
TARGET = Target(
    name="gpu", run=run, seeds=seeds, mutate=mutate, words=WORDS, max_len=1 << 16, vectors=vectors
)  # fmt: skip
