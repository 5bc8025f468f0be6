"""Whoever reads command lines, environments, logs, files, core dumps or tracebacks finds no secret of a guest."""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from canaries import Places, descendants, of_files, of_processes, search
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from processes import with_words

from antechamber.simulator.deployment import Deployment, prepared, scratch
from antechamber.simulator.linux import die_with_parent

KINDS = ("cmdline", "environ", "descriptors", "journal", "disk", "reprs")
KEPT = (
    "model.key",
    "broker/*.key",
    "simulator/*",
    "material/*",
    "reprs",
    "*.log",
)  # keys' own files, and searched apart


@dataclass
class Searched:
    """A guest that serves, and all that it and its broker must keep."""

    deployment: Deployment
    secrets: dict[str, bytes]

    def places(self) -> Places:
        root = self.deployment.root
        logs = {f"journal {name}": (root / name).read_bytes() for name in ("guest.log", "broker.log")}
        found = dict(of_processes(descendants())) | dict(of_files(root, KEPT)) | logs
        return found | {"reprs": (root / "reprs").read_bytes()}

    def found(self, **more: bytes) -> set[tuple[str, str]]:
        return search(self.places(), self.secrets | more)


@pytest.fixture(scope="module")
def searched() -> Iterator[Searched]:
    root = scratch()
    (root / "tmp").mkdir()
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, root, ignore_errors=True)
        deployment = prepared(root, lambda _: None, standin=True, interval_s=1)
        undo.callback(deployment.stop)
        told = start(deployment)
        deployment.await_serving()
        deployment.antechamber("verify", deployment.url, "--policy", str(deployment.client_policy))
        with open(told) as answer:
            assert deployment.guest is not None
            assert deployment.guest.stdin is not None
            deployment.guest.stdin.write(b"?")
            deployment.guest.stdin.close()
            own = {name: bytes.fromhex(secret) for name, secret in json.load(answer).items()}
        yield Searched(deployment, own | of_the_owner(root))


def start(deployment: Deployment) -> int:
    """The guest; a descriptor on which it will tell."""
    root = deployment.root
    told, into = os.pipe()
    program = str(Path(__file__).parents[1] / "confiding_guest.py")
    argv = [sys.executable, program, str(deployment.config), str(deployment.state), str(into), str(root / "reprs")]
    with (root / "guest.log").open("ab") as log:
        deployment.guest = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=(into,),
            env=os.environ | {"TMPDIR": str(root / "tmp")}, start_new_session=True,
            preexec_fn=lambda: die_with_parent(signal.SIGTERM),
        )  # fmt: skip
    os.close(into)
    return told


def of_the_owner(root: Path) -> dict[str, bytes]:
    """The model key, and what the broker keeps."""
    found = {
        "model key": (root / "model.key").read_bytes(),
        "master key": (root / "broker" / "master.key").read_bytes(),
    }
    for path in (root / "broker").glob("*.key"):
        if path.name != "master.key":
            key = load_pem_private_key(path.read_bytes(), None)
            raw = getattr(key, "private_bytes_raw", None)
            found[path.name] = raw() if raw else key.private_numbers().private_value.to_bytes(32, "big")  # type: ignore[union-attr]
    return found


def test_secrets_of_a_boot_are_known_to_the_search(searched: Searched) -> None:
    names = set(searched.secrets)
    assert {"TLS key", "TLS key, whole", "receipt key", "model key", "master key", "admin.key"} <= names
    assert any(name.startswith("TEE key") for name in names)
    assert all(len(secret) >= 32 for secret in searched.secrets.values())
    kinds = {place.partition(" ")[0] for place in searched.places()}
    assert kinds == set(KINDS)
    assert len(descendants()) >= 4  # broker, agent, engine, gateway


@pytest.mark.parametrize("kind", KINDS)
def test_no_secret_is_found(searched: Searched, kind: str) -> None:
    assert {(place, name) for place, name in searched.found() if place.startswith(kind)} == set()


def test_sealed_memory_of_the_tls_key_is_open_nowhere_but_in_transit(searched: Searched) -> None:
    """The engine never has it, the gateway closes it once loaded, the agent once sent."""
    links = {place: seen for place, seen in searched.places().items() if place.startswith("descriptors")}
    assert [place for place, seen in links.items() if b"memfd:tls-key" in seen] == []


def test_no_process_with_a_secret_dumps_core(searched: Searched) -> None:
    for word in ("confiding_guest.py", "gateway"):
        (pid,) = with_words(word, str(searched.deployment.root))
        assert re.search(r"Max core file size +0 +0 ", Path("/proc", str(pid), "limits").read_text()), word


def test_planted_canary_is_found_in_every_place_and_form(searched: Searched) -> None:
    root, canary = searched.deployment.root, os.urandom(32)
    text = base64.b64encode(b"x" + canary + b"y").decode()
    url = base64.urlsafe_b64encode(b"xy" + canary).decode()
    wait = "import sys; sys.stdin.read()"
    with ExitStack() as undo:

        def child(*argv: str, **more: str) -> int:
            command = [sys.executable, "-c", wait, *argv]
            one = undo.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, env=os.environ | more))
            return one.pid

        def planted(path: Path, seen: bytes) -> None:
            before = path.read_bytes() if path.exists() else None
            undo.callback(path.unlink if before is None else lambda: path.write_bytes(before))
            path.write_bytes((before or b"") + seen)

        asked, given = child(canary.hex()), child(CANARY=text)
        planted(root / "guest.log", f'\n{{"key": "{url}"}}'.encode())
        planted(root / "broker.log", json.dumps({"key": str(canary)}).encode())
        planted(searched.deployment.runtime_dir / "left", b"x" + canary)
        planted(root / "tmp" / "wrapped", "\n".join(text[i : i + 10] for i in range(0, len(text), 10)).encode())
        planted(root / "reprs", str(int.from_bytes(canary, "big")).encode() + b"\n" + repr(canary).encode())
        where = {
            f"cmdline {asked}",
            f"environ {given}",
            "journal guest.log",
            "journal broker.log",
            "disk run/left",
            "disk tmp/wrapped",
            "reprs",
        }
        assert searched.found(canary=canary) == {(place, "canary") for place in where}


def test_planted_token_is_found(searched: Searched) -> None:
    token = ".".join(base64.urlsafe_b64encode(b'{"a":"' + b"x" * n + b'"}').decode().rstrip("=") for n in (20, 40, 60))
    assert search({"journal guest.log": token.encode(), "disk x": token.encode()}, {}) == {
        ("journal guest.log", "token")
    }


def test_log_of_the_end_has_no_secret_either(searched: Searched) -> None:
    assert searched.deployment.stop_guest() == 0
    assert {name for place, name in searched.found() if place.startswith(("journal", "disk"))} == set()
    assert not (searched.deployment.runtime_dir / "model").exists()
