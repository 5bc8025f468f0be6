"""Commands of the relying party: verify, completion."""

import argparse
import json
import sys
from pathlib import Path

from antechamber.errors import AppraisalRefused, ConfigError


def read(path: str) -> bytes:
    """A file named on the command line. Raises ConfigError `cli.file`."""
    try:
        return Path(path).read_bytes()
    except OSError as e:
        raise ConfigError("cli.file", f"{path}: {e.strerror}", hint="name a readable file") from e


def verify(args: argparse.Namespace) -> int:
    """`antechamber verify`: exit status 0 only if every claim held."""
    from antechamber.client import report, saved
    from antechamber.client.verify import verify_url
    from antechamber.evidence.policy import load_policy

    policy = load_policy(read(args.policy))
    served: saved.Served
    if args.bundle:
        result, served = saved.verify_saved(read(args.bundle), policy)
        if args.quote not in (None, served.quote_sha256):
            raise AppraisalRefused(
                "endpoint.evidence", f"its quote has digest {served.quote_sha256}", hint="it is another call's"
            )
    else:
        result, served = verify_url(args.url, policy, quote_sha256=args.quote)
    if args.save:
        saved.save(Path(args.save), served)
    if args.json:
        print(json.dumps(report.as_json(result)))
    else:
        print(report.as_text(result, colour=sys.stdout.isatty()))
    result.require()
    return 0


def completion(args: argparse.Namespace) -> int:
    """`antechamber completion SHELL`."""
    try:
        import shtab
    except ImportError as e:
        raise ConfigError("install.shtab", "shtab is not installed", hint="install antechamber[client]") from e
    print(shtab.complete(args.parser, shell=args.shell))
    return 0
