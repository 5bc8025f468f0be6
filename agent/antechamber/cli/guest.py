"""Commands of the guest: boot, run, exec, gateway, status, quote.

Imports are inside the functions: start-up time counts, and the image carries only the guest's parts.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from antechamber.config import BrokerConfig
from antechamber.ports import KeyBroker

if TYPE_CHECKING:
    from antechamber.boot.pipeline import Adapters


def report_data(text: str) -> bytes:
    """64 bytes of REPORTDATA from 128 hex digits."""
    if not re.fullmatch(r"[0-9a-fA-F]{128}", text):
        raise argparse.ArgumentTypeError("not 128 hex digits")
    return bytes.fromhex(text)


def boot(args: argparse.Namespace) -> int:
    """`antechamber boot`: stages 1 to 11, then hand over, admit the engine, and watch."""
    from antechamber.boot.serve import serve_handover

    return serve_handover(args.config, _adapters(args))


def run(args: argparse.Namespace) -> int:
    """`antechamber run`: the same, with engine and gateway as children."""
    from antechamber.boot.serve import serve_children

    return serve_children(args.config, _adapters(args))


def _adapters(args: argparse.Namespace) -> "Adapters":
    from antechamber.boot.pipeline import Adapters
    from antechamber.broker.jwe import TeeKey
    from antechamber.hardware.memory import seal_memory

    seal_memory()
    return Adapters(args.hardware(), _broker, TeeKey.generate)


def _broker(config: BrokerConfig) -> KeyBroker:
    from antechamber.broker.kbs import Kbs
    from antechamber.broker.transport import Transport

    return Kbs(Transport(config.url, config.ca, config.timeout_s))


def exec_engine(args: argparse.Namespace) -> int:
    """`antechamber exec`: the engine that the boot handed over, in this process."""
    from antechamber.boot.handover import ask
    from antechamber.boot.launch import replace

    return replace(ask(Path(args.socket), "engine"))


def gateway(args: argparse.Namespace) -> int:
    """`antechamber gateway`: TLS in, engine socket out."""
    from antechamber.gateway.server import run
    from antechamber.hardware.memory import seal_memory

    seal_memory()
    return run(args.socket)


def status(args: argparse.Namespace) -> int:
    """`antechamber status`: what the agent says."""
    from antechamber.boot.handover import ask

    answer = ask(Path(args.socket), "status")
    answer.pop("ok", None)
    if args.json:
        print(json.dumps(answer))
    else:
        width = max(map(len, answer))
        print("\n".join(f"{name:<{width}}  {value}" for name, value in answer.items()))
    return 0


def quote(args: argparse.Namespace) -> int:
    """`antechamber quote HEX`: write a TDX quote to stdout."""
    sys.stdout.buffer.write(args.hardware().quotes.quote(args.report_data))
    return 0
