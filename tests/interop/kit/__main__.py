"""Ask a KBS every scenario: `scripts/interop --url https://kbs:8080 --ca ca.pem --attester sample`."""

import argparse
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from interop.kit import report, server_admin, server_release, server_session
from interop.kit.attesters import Attester, Sample, Simulated, Tdx
from interop.kit.core import SERVER, Options, real_wait, run
from interop.kit.wire import Wire
from joserfc import jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey

from antechamber.errors import AgentError
from antechamber.simulator.knobs import Knobs
from antechamber.simulator.state import State

_ = (server_admin, server_release, server_session)  # each registers its scenarios
EPILOG = """\
Exit status: 0 if nothing failed, 1 if something did, 2 for a wrong command.

Profile `trustee` accepts only what Trustee's sources say; `antechamber` expects the deviations of docs/kbs.md, and
fails where one is not seen. --attester sample needs a Trustee whose policies accept `sample`: never in production.
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="scripts/interop", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawTextHelpFormatter
    )
    p.add_argument("--url", help="of the KBS; its path may have a prefix before /kbs/v0")
    p.add_argument("--ca", help="PEM: what its certificate chains to; default: the system's roots")
    p.add_argument("--profile", choices=("trustee", "antechamber"), default="trustee")
    p.add_argument("--attester", choices=("sample", "simulator", "tdx"), default="sample")
    p.add_argument(
        "--simulator-state", type=Path, metavar="DIR", help="whose vendors the broker pins: `material` made it"
    )
    p.add_argument("--event", action="append", default=[], metavar="NAME=CONTENT", help="of the simulated boot")
    p.add_argument("--resource", default="default/any/1", help="released to this attester, as often as asked")
    p.add_argument("--boot-resource", default="", help="released to it until it has one")
    p.add_argument("--denied", default="", help="never released to it")
    p.add_argument("--missing", default=Options().missing, help="would be released to it, but is not there")
    p.add_argument("--token-ca", type=Path, metavar="PEM", help="what the token's x5c chains to")
    p.add_argument("--admin-key", type=Path, metavar="PEM", help="private key of an administrator")
    p.add_argument("--admin-issuer", default="antechamber")
    p.add_argument("--admin-audience", default="KBS")
    p.add_argument("--admin-role", default="admin")
    p.add_argument("--throwaway", action="store_true", help="admin calls may change policies and Reference Values")
    p.add_argument("--wait", type=int, metavar="SECONDS", help="sessions and tokens live so long: wait for their end")
    p.add_argument("--only", action="append", default=[], metavar="ID", help="scenarios, or families such as `jwe`")
    p.add_argument("--json", action="store_true")
    p.add_argument("--list", action="store_true", help="print the catalogue")
    p.add_argument("--deviations", action="store_true", help="print the deviations as docs/kbs.md has them")
    return p


def admin_tokens(args: argparse.Namespace) -> Callable[[int], str] | None:
    if args.admin_key is None:
        return None
    pem = args.admin_key.read_bytes()
    kind = type(load_pem_private_key(pem, None)).__name__
    key, alg = (OKPKey, "EdDSA") if "Ed25519" in kind else (ECKey, "ES256") if "Elliptic" in kind else (RSAKey, "RS256")
    loaded = key.import_key(pem)

    def token(lifetime_s: int) -> str:
        now = int(time.time())
        claims = {"iss": args.admin_issuer, "sub": "admin", "aud": [args.admin_audience], "role": args.admin_role}
        times = {"iat": now - 7200 if lifetime_s < 0 else now, "exp": now + lifetime_s}
        return jwt.encode({"alg": alg, "typ": "JWT"}, claims | times, loaded, algorithms=[alg])

    return token


def attester(args: argparse.Namespace) -> Callable[[], Attester]:
    """Raises ValueError, AgentError."""
    if args.attester == "sample":
        return Sample
    if args.attester == "tdx":
        return Tdx
    if args.simulator_state is None:
        raise ValueError("--attester simulator needs --simulator-state")
    if wrong := [e for e in args.event if "=" not in e]:
        raise ValueError(f"--event {wrong[0][:200]} is not NAME=CONTENT")
    if not args.simulator_state.is_dir():  # a state that is not there would be made: of vendors that no broker pins
        raise ValueError(f"--simulator-state {args.simulator_state} is no directory")
    state, contents = State.open(args.simulator_state), dict(e.split("=", 1) for e in args.event)
    return lambda: Simulated(state.machine(Knobs()), contents)


def options_of(args: argparse.Namespace) -> Options:
    """Raises OSError, TypeError, ValueError, UnsupportedAlgorithm."""
    return Options(
        resource=args.resource,
        boot_resource=args.boot_resource,
        denied=args.denied,
        missing=args.missing,
        token_ca=args.token_ca.read_bytes() if args.token_ca else None,
        admin_token=admin_tokens(args),
        throwaway=args.throwaway,
        wait=real_wait if args.wait else None,
        lifetime_s=args.wait or 300,
    )


def chosen_scenarios(only: Sequence[str]) -> tuple[list[str], list[str]]:
    """The scenarios of these ids and families, all of them for none; and what names no scenario."""
    names = {name for s in SERVER for name in (s, s.partition(".")[0])}
    chosen = [s for s in SERVER if not only or s in only or s.partition(".")[0] in only]
    return chosen, [name for name in only if name not in names]


def main(argv: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    if args.list or args.deviations:
        print(report.catalogue() if args.list else report.markdown())
        return 0
    if not args.url:
        p.error("--url is needed")
    chosen, unknown = chosen_scenarios(args.only)
    if unknown:
        p.error(f"no scenario {', '.join(unknown)}: --list has them")  # nothing asked must not look like nothing failed
    if args.wait is not None and args.wait < 1:
        p.error("--wait needs at least a second")
    try:
        options, wire, who = options_of(args), Wire(args.url, args.ca), attester(args)
    except (OSError, TypeError, ValueError, UnsupportedAlgorithm, AgentError) as e:
        p.error(f"{type(e).__name__}: {e}" if isinstance(e, ssl.SSLError) else str(e))
    verdicts = [run(s, wire, who, options, args.profile) for s in chosen]
    print(report.as_json(verdicts, args.url, args.profile) if args.json else report.table(verdicts))
    if all(v.outcome == "not-applicable" for v in verdicts):
        p.error("nothing was asked: each verdict says what to give")  # that must not look like nothing failed
    return 1 if any(v.outcome == "fail" for v in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
