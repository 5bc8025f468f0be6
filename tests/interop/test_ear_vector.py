"""Our broker's token has every member that a token of Trustee's has. Origin: kbs/example.token.json, Trustee's own."""

import base64
import json
from pathlib import Path

from brokers import running
from vectors import VECTORS, needs_vectors


@needs_vectors
def test_token_has_the_members_of_trustees_example(tmp_path: Path) -> None:
    wanted = json.loads((VECTORS / "kbs" / "example.token.json").read_text())
    with running(tmp_path / "broker") as rig:
        token = rig.guest().attest(rig.kbs())
    payload = token.split(".")[1]
    ours = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert set(wanted) <= set(ours)
    assert ours["eat_profile"] == wanted["eat_profile"]
    cpu, theirs = ours["submods"]["cpu0"], wanted["submods"]["cpu0"]
    assert set(theirs) - {"ear.trustee.identifiers"} <= set(cpu)
    assert set(theirs["ear.trustworthiness-vector"]) == set(cpu["ear.trustworthiness-vector"])
    evidence = "ear.veraison.annotated-evidence"
    assert set(theirs[evidence]) - {"sgx"} <= set(cpu[evidence])
