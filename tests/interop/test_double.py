"""The double is what the reference says: the kit's strict profile, which knows no deviation, passes against it."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from interop.kit.__main__ import admin_tokens, parser
from interop.kit.attesters import Attester, Sample, Simulated
from interop.kit.core import SERVER, Options, run
from interop.kit.wire import Wire
from interop.trustee import authority, serving
from interop.trustee_double import Double, Knobs

from antechamber.simulator.intel import IntelPki
from antechamber.simulator.machine import Machine
from antechamber.simulator.nvidia import NvidiaPki

pytestmark = [
    pytest.mark.filterwarnings("ignore:EdDSA is deprecated"),
    pytest.mark.filterwarnings("ignore:JWE algorithm"),  # RSA1_5, which the kit asks for
]
# The double writes neither the quote nor the event log into its claims.
ASKED = [
    (s, w) for s in SERVER for w in ("sample", "simulator") if s not in ("token.ear", "token.events") or w == "sample"
]


class Clock:
    ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead

    def wait(self, seconds: int) -> None:
        self.ahead += seconds


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, Clock, Double]]:
    directory, clock = tmp_path_factory.mktemp("double"), Clock()
    key = Ed25519PrivateKey.generate()
    (directory / "admin.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    signer, ca = authority()
    double = Double(Knobs(), signer, ca, {"default/any/1": b"a key", "default/boot/1": b"another"}, clock=clock)
    double.admin = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with serving(double, directory) as url:
        yield url, directory, clock, double


INTEL, NVIDIA = IntelPki(), NvidiaPki()


@pytest.mark.parametrize(("scenario", "who"), ASKED)
def test_double_passes_the_strict_profile(double: tuple[str, Path, Clock, Double], scenario: str, who: str) -> None:
    url, directory, clock, _ = double
    clock.ahead = 0
    options = Options(
        boot_resource="default/boot/1",
        denied="denied/a/1",
        token_ca=(directory / "ca.pem").read_bytes(),
        admin_token=admin_tokens(parser().parse_args(["--admin-key", str(directory / "admin.key")])),
        throwaway=True,
        wait=clock.wait,
    )

    def attester() -> Attester:
        return Sample() if who == "sample" else Simulated(Machine(INTEL, NVIDIA), {"model": "sha256:" + "11" * 32})

    verdict = run(scenario, Wire(url, str(directory / "ca.pem")), attester, options, "trustee")
    allowed = ("pass", "not-applicable") if who == "sample" else ("pass",)
    assert verdict.outcome in allowed, verdict
