"""`antechamber collateral fetch` from a PCCS: the real client against a simulated one on loopback."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import quote as escape
from urllib.parse import urlsplit

import pytest

from antechamber.evidence.anchors import Anchors
from antechamber.evidence.chain import verify_quote
from antechamber.evidence.collateral import TdxCollateral
from antechamber.evidence.tdx import Quote
from antechamber.simulator.intel import IntelPki, td_body


@pytest.fixture
def pccs() -> Iterator[tuple[str, IntelPki]]:
    """Intel's PCS v4 paths, with the simulated vendor's answers. Source: Intel PCS API v4."""
    intel = IntelPki()
    c = intel.collateral()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            answers: dict[str, tuple[bytes, dict[str, str]]] = {
                "/sgx/certification/v4/pckcrl": (
                    bytes.fromhex(c["pck_crl"]),
                    {"SGX-PCK-CRL-Issuer-Chain": escape(c["pck_crl_issuer_chain"])},
                ),
                "/tdx/certification/v4/tcb": (
                    f'{{"tcbInfo":{c["tcb_info"]},"signature":"{c["tcb_info_signature"]}"}}'.encode(),
                    {"TCB-Info-Issuer-Chain": escape(c["tcb_info_issuer_chain"])},
                ),
                "/tdx/certification/v4/qe/identity": (
                    f'{{"enclaveIdentity":{c["qe_identity"]},"signature":"{c["qe_identity_signature"]}"}}'.encode(),
                    {"SGX-Enclave-Identity-Issuer-Chain": escape(c["qe_identity_issuer_chain"])},
                ),
                "/sgx/certification/v4/rootcacrl": (c["root_ca_crl"].encode(), {}),
            }
            body, headers = answers.get(path, (b"", {}))
            self.send_response(200 if body else 404)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", intel
    server.shutdown()


def command(*argv: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "antechamber", "collateral", *argv], capture_output=True, text=True)


def test_collateral_fetch_gives_what_verifies_the_quote(pccs: tuple[str, IntelPki], tmp_path: Path) -> None:
    url, intel = pccs
    quote = Quote.parse(intel.quote_v4(td_body(report_data=bytes(64))))
    (tmp_path / "quote.bin").write_bytes(quote.raw)
    done = command("fetch", "--url", url, "--quote", str(tmp_path / "quote.bin"))
    assert done.returncode == 0, done.stderr
    collateral = TdxCollateral.parse(done.stdout.encode())
    anchors = Anchors(intel.root_der, bytes(32))
    assert verify_quote(quote, collateral, anchors, collateral.issue_date + 1).tcb_status == "UpToDate"
    (tmp_path / "c.json").write_text(done.stdout)
    shown = json.loads(command("show", "--json", str(tmp_path / "c.json")).stdout)
    assert shown["fmspc"] == intel.fmspc


def test_collateral_fetch_replaces_a_file_as_a_whole_or_leaves_it(pccs: tuple[str, IntelPki], tmp_path: Path) -> None:
    url, intel = pccs
    quote, out = tmp_path / "quote.bin", tmp_path / "c.json"
    quote.write_bytes(intel.quote_v4(td_body(report_data=bytes(64))))
    out.write_text("old")
    with out.open() as reading:
        assert command("fetch", "--url", "http://127.0.0.1:1", "--quote", str(quote), "--out", str(out)).returncode
        assert out.read_text() == "old"
        done = command("fetch", "--url", url, "--quote", str(quote), "--out", str(out))
        assert (done.returncode, done.stdout) == (0, "")
        assert reading.read() == "old"  # whoever had it open
    assert TdxCollateral.parse(out.read_bytes()).fmspc == intel.fmspc
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.json", "quote.bin"]
    missing = command("fetch", "--url", url, "--quote", str(quote), "--out", str(tmp_path / "none" / "c.json"))
    assert "code='cli.file'" in missing.stderr


def test_collateral_fetch_refuses_when_nothing_answers(tmp_path: Path) -> None:
    (tmp_path / "quote.bin").write_bytes(IntelPki().quote_v4(td_body(report_data=bytes(64))))
    done = command("fetch", "--url", "http://127.0.0.1:1", "--quote", str(tmp_path / "quote.bin"))
    assert done.returncode == 75
    assert "code='collateral.fetch'" in done.stderr
