"""Reads the real GPU Evidence beside the checkout: hex, base64 in JSON, PEM."""

import base64
import json

from vectors import VECTORS

from antechamber.evidence.anchors import NVIDIA_ROOT_SPKI, Anchors
from antechamber.evidence.composite import GpuEvidence

NVIDIA = VECTORS / "nvidia"
ANCHORS = Anchors(None, NVIDIA_ROOT_SPKI)
NOW = 1_755_760_000  # 2025-08-21


def raw_report(path: str) -> bytes:
    return bytes.fromhex((NVIDIA / path).read_text().strip())


def single(arch: str, report: str, chain: str) -> GpuEvidence:
    return GpuEvidence(arch, "", raw_report(report), (NVIDIA / chain).read_bytes())


def hgx(name: str) -> tuple[GpuEvidence, ...]:
    """`gpu_evidence` or `switch_evidence` of one HGX in PPCIE mode."""
    entries = json.loads((NVIDIA / f"ppcie/{name}.json").read_text())
    return tuple(
        GpuEvidence(e["arch"], "", base64.b64decode(e["evidence"]), base64.b64decode(e["certificate"])) for e in entries
    )


def b200() -> tuple[GpuEvidence, ...]:
    """Eight B200 in multi-GPU mode."""
    entries = json.loads((NVIDIA / "blackwell/b200x8-mpt.json").read_text())["gpus"]
    return tuple(
        GpuEvidence(
            "BLACKWELL",
            e["UUID"],
            base64.b64decode(e["AttestationReport"]["py/b64"]),
            base64.b64decode(e["CertificateChains"]["GpuAttestationCertificateChain"][0]["pem"]),
        )
        for e in entries
    )
