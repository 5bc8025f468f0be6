"""`antechamber run` on stand-ins, but that it tells its secrets to whoever asks: a byte on stdin, JSON on a descriptor.

And how each of our objects shows itself, as a file: what a traceback or a debugger's log would have.
"""

import gc
import json
import os
import sys
import threading
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from antechamber import cli
from antechamber.boot.identity import Identity
from antechamber.broker.jwe import TeeKey
from antechamber.simulator import standin
from antechamber.simulator.knobs import Knobs
from antechamber.simulator.state import State


def scalar(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_numbers().private_value.to_bytes(32, "big")


def secrets() -> dict[str, str]:
    """In hex, by name."""
    found: dict[str, bytes] = {}
    for one in gc.get_objects():
        if isinstance(one, Identity):
            der = one.tls.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
            found |= {"TLS key": scalar(one.tls), "TLS key, whole": der}
            found["receipt key"] = one.receipt.private_bytes_raw()
        elif isinstance(one, TeeKey) and isinstance(one.private, ec.EllipticCurvePrivateKey):
            found[f"TEE key {len(found)}"] = scalar(one.private)
    return {name: secret.hex() for name, secret in found.items()}


def shown() -> str:
    """repr and str of every object of a class of ours."""
    ours = [one for one in gc.get_objects() if str(type(one).__module__).startswith("antechamber.")]
    return "\n".join(f"{one!r} {one}" for one in ours)


def confide(into: int, reprs: Path) -> None:
    with open(into, "w") as out:  # closed, whatever comes
        sys.stdin.buffer.read(1)
        reprs.write_text(shown())
        json.dump(secrets(), out)


if __name__ == "__main__":
    config, state, descriptor, place = sys.argv[1:]
    os.set_inheritable(int(descriptor), False)
    machine = State.open(Path(state)).machine(Knobs())
    threading.Thread(target=confide, args=(int(descriptor), Path(place)), daemon=True).start()
    sys.exit(cli.main(["--log", "json", "run", "--config", config], hardware=lambda: standin.hardware(machine)))
