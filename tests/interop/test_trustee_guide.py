"""The guide for a Trustee: its shell runs, in order, against the double; its configuration parses."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from interop.trustee import authority, serving
from interop.trustee_double import Double, Knobs

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "trustee.md").read_text()
POLICIES = {
    "resource-policy": "resource-policy.rego",
    "default_cpu": "attestation-policy-cpu.rego",
    "default_gpu": "attestation-policy-gpu.rego",
}


@pytest.mark.curl
@pytest.mark.openssl
@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
def test_shell_of_the_guide_sets_up_a_trustee(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    (tmp_path / "admin.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "model.key").write_bytes(bytes(range(32)))
    values = {"mr_td": ["00" * 48], "tcb_status": ["UpToDate"]}
    (tmp_path / "reference-values.json").write_text(json.dumps(values))
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    signer, ca = authority()
    double = Double(Knobs(), signer, ca)
    double.admin = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    script = "set -euo pipefail\n" + "\n".join(re.findall(r"```sh\n(.*?)```", GUIDE, re.S))
    with serving(double, tmp_path) as url:
        environment = {"PATH": "/usr/bin:/bin", "KBS": url, "CA": str(tmp_path / "ca.pem"), "HOME": str(tmp_path)}
        ran = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ran.returncode == 0, ran.stderr
    assert double.resources == {"default/model-key/llama-3.1-8b": bytes(range(32))}
    assert double.references == values
    assert double.policies == {name: (ROOT / "docs" / "trustee" / file).read_bytes() for name, file in POLICIES.items()}
    first = [line for line in double.seen if "policy" in line or "/resource/" in line]
    assert first[-1] == "POST /kbs/v0/resource/default/model-key/llama-3.1-8b"  # the key comes after its policy


def test_configuration_of_the_guide_parses_and_keeps_tokens_short() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", GUIDE, re.S)
    found = tomllib.loads(text)
    service = found["attestation_service"]
    assert service["attestation_token_broker"]["duration_min"] == service["timeout"] == 5
    assert found["admin"]["authorization_mode"] == "AuthenticatedAuthorization"


@pytest.mark.parametrize(
    "link", re.findall(r"\]\(([a-z./_-]+\.(?:rego|md|py|yaml))\)", GUIDE + (ROOT / "docs/kbs.md").read_text())
)
def test_link_of_the_guides_leads_somewhere(link: str) -> None:
    assert (ROOT / "docs" / link).exists()
