"""What can be typed."""

import argparse
import textwrap

from antechamber import __version__
from antechamber.cli import guest, owner, policy, relying

CONFIG = "/etc/antechamber/antechamber.yaml"
SOCKET = "/run/antechamber/agent.sock"

_Sub = argparse._SubParsersAction  # the only public name of this type


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="antechamber",
        description="Prove the machine, get the keys that the proof earns, unlock the model, and only then serve it.",
        epilog="Exit status: 0 well, 2 usage, 65 malformed or corrupt, 69 unfit platform, 70 engine, 75 unavailable, "
        "77 refused, 78 configuration. Each refusal has a code that the README lists.",
    )
    parser.add_argument("--version", action="version", version=f"antechamber {__version__}")
    parser.add_argument(
        "--log", choices=("text", "json", "journal"), default="text", help="records on stderr (default: text)"
    )
    sub = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _guest(sub)
    _relying(sub)
    _owner(sub)
    _completion(sub, parser)
    return parser


def _command(sub: "_Sub[argparse.ArgumentParser]", name: str, text: str, examples: str) -> argparse.ArgumentParser:
    return sub.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog="examples:\n" + textwrap.indent(textwrap.dedent(examples).strip(), "  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _guest(sub: "_Sub[argparse.ArgumentParser]") -> None:
    boot = _command(
        sub,
        "boot",
        "prove this guest, unlock the model, then hand over and watch (systemd starts engine and gateway)",
        f"antechamber boot\nantechamber --log journal boot --config {CONFIG}",
    )
    run = _command(
        sub,
        "run",
        "boot, engine, gateway and watch in the foreground, without systemd",
        "antechamber run --config antechamber.yaml",
    )
    for command, function in ((boot, guest.boot), (run, guest.run)):
        command.add_argument("--config", default=CONFIG, metavar="FILE", help=f"default: {CONFIG}")
        command.set_defaults(run=function)
    engine = _command(
        sub, "exec", "become the engine, with what the boot handed over; refuses without it", "antechamber exec"
    )
    engine.set_defaults(run=guest.exec_engine)
    gateway = _command(
        sub, "gateway", "serve attested TLS, with what the boot handed over; refuses without it", "antechamber gateway"
    )
    gateway.set_defaults(run=guest.gateway)
    status = _command(
        sub, "status", "what the running guest says of itself", "antechamber status\nantechamber status --json"
    )
    status.add_argument("--json", action="store_true", help="one JSON object")
    status.set_defaults(run=guest.status)
    for command in (engine, gateway, status):
        command.add_argument("--socket", default=SOCKET, metavar="PATH", help=f"the agent's socket (default: {SOCKET})")
    quote = _command(
        sub,
        "quote",
        "write a TDX quote over 64 bytes of REPORTDATA to stdout",
        "antechamber quote $(openssl rand -hex 64) > quote.bin",
    )
    quote.add_argument("report_data", metavar="HEX", type=guest.report_data, help="128 hex digits")
    quote.set_defaults(run=guest.quote)


def _relying(sub: "_Sub[argparse.ArgumentParser]") -> None:
    verify = _command(
        sub,
        "verify",
        "verify a guest, or a saved bundle, against a policy, claim by claim",
        """\
        antechamber verify https://host:8443 --policy policy.yaml
        antechamber verify https://host:8443 --policy policy.yaml --json --save bundle.json
        antechamber verify --bundle bundle.json --policy policy.yaml""",
    )
    what = verify.add_mutually_exclusive_group(required=True)
    what.add_argument("url", nargs="?", metavar="URL", help="https://host[:port]")
    what.add_argument("--bundle", metavar="FILE", help="a saved bundle, judged offline at the signed time in it")
    verify.add_argument("--policy", required=True, metavar="FILE", help="the Appraisal Policy")
    verify.add_argument("--quote", metavar="SHA256", help="verify the bundle of a past answer (x-tdx-quote-sha256)")
    verify.add_argument("--save", metavar="FILE", help="save the bundle as it was served")
    verify.add_argument("--json", action="store_true", help="one JSON object")
    verify.set_defaults(run=relying.verify)


def _owner(sub: "_Sub[argparse.ArgumentParser]") -> None:
    hashing = _command(sub, "hash", "print the MODEL_HASH of a plain folder", "antechamber hash ./Llama-3.1-8B")
    hashing.add_argument("directory", metavar="DIR")
    hashing.set_defaults(run=owner.hash_model)
    pack = _command(
        sub,
        "pack",
        "encrypt a model into a sealed package and print its MODEL_HASH",
        """\
        antechamber pack ./model ./package --new-key model.key --golden-prompt 'The capital of France is'
        antechamber pack ./model ./package --key model.key --version 2 --golden golden.json""",
    )
    pack.add_argument("directory", metavar="DIR", help="the plain model")
    pack.add_argument("package", metavar="OUT", help="made whole, or not at all")
    key = pack.add_mutually_exclusive_group(required=True)
    key.add_argument("--key", metavar="FILE", help="32 bytes")
    key.add_argument("--new-key", metavar="FILE", help="make a key and write it there, mode 0600")
    golden = pack.add_mutually_exclusive_group(required=True)
    golden.add_argument("--golden", metavar="FILE", help="JSON: prompt, max_tokens, accepted continuations by engine")
    golden.add_argument("--golden-prompt", metavar="TEXT", help="compute the continuation with the built-in engine")
    pack.add_argument(
        "--max-tokens", type=int, default=16, metavar="N", help="of the computed continuation (default: 16)"
    )
    pack.add_argument("--segment-size", type=int, default=0, metavar="BYTES", help="default: see docs/model-format.md")
    pack.add_argument("--version", type=int, default=1, metavar="N", help="of this package (default: 1)")
    pack.add_argument("--key-id", default="1", metavar="ID", help="names the key in the package (default: 1)")
    pack.set_defaults(run=owner.pack)
    reference = _command(
        sub,
        "reference",
        "print the event contents that a policy pins for a configuration (JSON, which is YAML)",
        "antechamber reference --config antechamber.yaml",
    )
    reference.add_argument("--config", default=CONFIG, metavar="FILE", help=f"default: {CONFIG}")
    reference.add_argument("--json", action="store_true", help="on one line")
    reference.set_defaults(run=owner.reference)
    _broker(sub)
    _policy(sub)
    _collateral(sub)


def _broker(sub: "_Sub[argparse.ArgumentParser]") -> None:
    broker = _command(
        sub,
        "broker",
        "run the embedded key broker (KBS protocol 0.4.0)",
        """\
        antechamber broker init ./broker --name kbs.example.org
        antechamber broker serve ./broker --listen 0.0.0.0:8443
        antechamber broker put ./broker default/model-key/llama model.key --url https://kbs.example.org:8443""",
    )
    verbs = broker.add_subparsers(title="verbs", metavar="VERB", required=True)
    init = _command(
        verbs, "init", "make keys, certificates and a policy that denies everything", "antechamber broker init ./broker"
    )
    init.add_argument("directory", metavar="DIR")
    init.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="NAME",
        help="DNS name or address (default: localhost, 127.0.0.1)",
    )
    init.set_defaults(run=owner.broker_init)
    serve = _command(verbs, "serve", "serve until stopped", "antechamber broker serve ./broker --listen 127.0.0.1:8443")
    serve.add_argument("directory", metavar="DIR")
    serve.add_argument("--listen", metavar="ADDRESS:PORT", help="default: as broker.yaml says")
    serve.set_defaults(run=owner.broker_serve)
    audit = _command(
        verbs, "audit", "print the newest decisions, oldest first", "antechamber broker audit ./broker --last 20"
    )
    audit.add_argument("directory", metavar="DIR")
    audit.add_argument("--last", type=int, default=100, metavar="N", help="how many (default: 100)")
    audit.add_argument("--json", action="store_true", help="a JSON object a line")
    audit.set_defaults(run=owner.broker_audit)
    put = _command(
        verbs,
        "put",
        "upload a resource with the admin key",
        "antechamber broker put ./broker default/model-key/llama model.key",
    )
    put.add_argument("directory", metavar="DIR", help="where init put admin.key and the CA")
    put.add_argument("resource", metavar="REPOSITORY/TYPE/TAG")
    put.add_argument("file", metavar="FILE")
    put.add_argument("--url", default="https://127.0.0.1:8080", metavar="URL", help="default: https://127.0.0.1:8080")
    put.set_defaults(run=owner.broker_put)


def _policy(sub: "_Sub[argparse.ArgumentParser]") -> None:
    found = _command(
        sub,
        "policy",
        "say what a policy, or a broker's rules, would decide, and what they leave open",
        """\
        antechamber policy check policy.yaml
        antechamber policy explain body.json --broker ./broker""",
    )
    verbs = found.add_subparsers(title="verbs", metavar="VERB", required=True)
    explain = _command(
        verbs,
        "explain",
        "what would be decided about saved Evidence, claim by claim; nothing is released, and nothing written",
        """\
        antechamber policy explain bundle.json --policy policy.yaml
        antechamber policy explain body.json --broker ./broker --at 2026-11-24T10:00:00Z
        antechamber policy explain body.json --policy policy.yaml --collateral host.json --json""",
    )
    explain.add_argument("evidence", metavar="EVIDENCE", help="a saved bundle, or the body of an /attest; - is stdin")
    by = explain.add_mutually_exclusive_group(required=True)
    by.add_argument("--policy", metavar="FILE", help="an Appraisal Policy")
    by.add_argument("--broker", metavar="DIR", help="a broker's directory: its rules, collateral and history")
    explain.add_argument("--collateral", metavar="FILE", help="for the body of an /attest, with --policy")
    explain.add_argument(
        "--at",
        metavar="TIME",
        type=policy.moment,
        help="such as 2026-11-24T10:00:00Z (default: now; see docs/policy.md)",
    )
    explain.add_argument("--json", action="store_true", help="one JSON object")
    explain.set_defaults(run=policy.explain)
    check = _command(
        verbs,
        "check",
        "parse a policy or a broker's rules, and say what they leave open",
        "antechamber policy check policy.yaml\nantechamber policy check --broker ./broker",
    )
    what = check.add_mutually_exclusive_group(required=True)
    what.add_argument("file", nargs="?", metavar="FILE", help="an Appraisal Policy; a broker's rules need --broker")
    what.add_argument("--broker", metavar="DIR", help="a broker's directory")
    check.add_argument("--json", action="store_true", help="one JSON object")
    check.set_defaults(run=policy.check)


def _collateral(sub: "_Sub[argparse.ArgumentParser]") -> None:
    collateral = _command(
        sub,
        "collateral",
        "fetch or show Intel's collateral for a quote",
        """\
        antechamber collateral fetch --url https://api.trustedservices.intel.com --quote quote.bin --out c.json
        antechamber collateral show c.json""",
    )
    verbs = collateral.add_subparsers(title="verbs", metavar="VERB", required=True)
    fetch = _command(
        verbs,
        "fetch",
        "from a PCCS or Intel's PCS",
        "antechamber collateral fetch --url https://pccs.example.org --quote quote.bin",
    )
    fetch.add_argument("--url", required=True, metavar="URL", help="PCCS or PCS; none is the default")
    fetch.add_argument("--quote", required=True, metavar="FILE", help="a quote of the platform")
    fetch.add_argument("--out", metavar="FILE", help="replaced as a whole; default: stdout")
    fetch.set_defaults(run=owner.collateral_fetch)
    show = _command(verbs, "show", "what collateral covers, and until when", "antechamber collateral show c.json")
    show.add_argument("file", metavar="FILE")
    show.add_argument("--json", action="store_true", help="one JSON object")
    show.set_defaults(run=owner.collateral_show)


def _completion(sub: "_Sub[argparse.ArgumentParser]", parser: argparse.ArgumentParser) -> None:
    completion = _command(
        sub,
        "completion",
        "print a completion script for a shell",
        "antechamber completion bash > /etc/bash_completion.d/antechamber",
    )
    completion.add_argument("shell", choices=("bash", "zsh"))
    completion.set_defaults(run=relying.completion, parser=parser)
