"""Commands of the model owner: hash, pack, reference, broker, collateral. No production image has what they import."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from antechamber import strict
from antechamber.cli.relying import read
from antechamber.errors import ConfigError, HardwareUnavailable, MalformedEvidence, ModelCorrupt

if TYPE_CHECKING:
    from antechamber.model.manifest import Golden


def hash_model(args: argparse.Namespace) -> int:
    """`antechamber hash DIR`."""
    from antechamber.model.digest import hash_tree

    print(hash_tree(Path(args.directory), _bar).model_hash)
    return 0


def pack(args: argparse.Namespace) -> int:
    """`antechamber pack DIR OUT`: prints MODEL_HASH."""
    from antechamber.model import pack as packing
    from antechamber.model.manifest import DEFAULT_SEGMENT

    source = Path(args.directory)
    if not source.is_dir():
        raise ConfigError("cli.file", f"{source} is not a folder", hint="name the plain model's folder")
    if args.key and not Path(args.key).is_file():
        raise ConfigError("cli.file", f"{args.key} is not a file", hint="name a key file, or --new-key FILE")
    golden = _golden(args)
    key = packing.new_key_file(Path(args.new_key)) if args.new_key else packing.read_key_file(Path(args.key))
    print(
        packing.pack(
            source,
            Path(args.package),
            key,
            golden=golden,
            key_id=args.key_id,
            version=args.version,
            segment_size=args.segment_size or DEFAULT_SEGMENT,
            progress=_bar,
        )
    )
    return 0


def _golden(args: argparse.Namespace) -> "Golden":
    from antechamber.model.manifest import Golden

    if args.golden:
        try:
            return Golden.parse(read(args.golden))
        except ModelCorrupt as e:
            hint = 'give {"prompt", "max_tokens", "accept": [{"engine", "precision", "text"}]}'
            raise ConfigError("cli.golden", f"{args.golden}: {e.detail}", hint=hint) from e
    from antechamber.engine.builtin import golden

    text = golden(Path(args.directory), args.golden_prompt, args.max_tokens)
    accept = [{"engine": "builtin", "precision": "float32", "text": text}]
    sealed = {"prompt": args.golden_prompt, "max_tokens": args.max_tokens, "accept": accept}
    return Golden.parse(json.dumps(sealed))


def _bar(done: int, total: int) -> None:
    if sys.stderr.isatty() or done == total:
        share = done / total if total else 1.0
        end = "\n" if done == total else ""
        print(f"\r[{'#' * int(share * 40):<40}] {share:4.0%}  {done:,} of {total:,} bytes", end=end, file=sys.stderr)


def reference(args: argparse.Namespace) -> int:
    """`antechamber reference`: the `events:` of a policy for a guest with this configuration."""
    from antechamber import config
    from antechamber.boot.launch import plan
    from antechamber.evidence.bundle import sha384

    cfg, raw = config.load(args.config)
    if cfg.init_data is not None:
        raise ConfigError("cli.init-data", "init-data changes what is measured", hint="give the merged configuration")
    contents = {
        "config": [config.measured(raw)],
        "init-data": [sha384(bytes(48))],
        "engine": [plan(cfg).event],
        "model": [cfg.model.hash],
        "gpu": "unpinned",
    }
    print(json.dumps({"events": contents}, indent=None if args.json else 2))
    return 0


def broker_init(args: argparse.Namespace) -> int:
    """`antechamber broker init DIR`."""
    from antechamber.broker import admin

    admin.init(Path(args.directory), tuple(args.name) or ("localhost", "127.0.0.1"))
    print(f"{args.directory}: keys, certificates, and policy.yaml, which denies everything until you write it")
    return 0


def broker_serve(args: argparse.Namespace) -> int:
    """`antechamber broker serve DIR`."""
    from antechamber.broker import admin

    return admin.serve(Path(args.directory), args.listen)


def broker_audit(args: argparse.Namespace) -> int:
    """`antechamber broker audit DIR`."""
    import time
    from dataclasses import asdict

    from antechamber.broker import admin
    from antechamber.client.report import shown

    for record in admin.audit_records(Path(args.directory), args.last):
        if args.json:
            print(json.dumps(asdict(record)))
            continue
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.time))
        why = f"  {record.code}: {record.detail}" if record.code else ""
        body = json.loads(record.evidence).get("body") if record.evidence.endswith("}") else None
        kept = f"  (kept as {body})" if body else ""
        line = f"{when}  {record.decision:<9} {record.peer:<15} {record.resource}{why}{kept}"
        print(shown(line))  # a stranger chose what he asked for
    return 0


def broker_put(args: argparse.Namespace) -> int:
    """`antechamber broker put DIR RESOURCE FILE`."""
    from antechamber.broker import admin

    admin.upload(args.url, Path(args.directory), args.resource, read(args.file))
    return 0


def collateral_fetch(args: argparse.Namespace) -> int:
    """`antechamber collateral fetch`: JSON to stdout, or whole into a file that a broker may be reading."""
    import importlib.util
    import subprocess

    from antechamber.evidence.collateral import TdxCollateral
    from antechamber.evidence.tdx import Quote

    if importlib.util.find_spec("dcap_qvl") is None:
        raise ConfigError("install.dcap-qvl", "dcap-qvl is not installed", hint="install antechamber[broker]")
    quote = Quote.parse(read(args.quote))
    argv = [sys.executable, "-I", "-m", "antechamber.broker.pccs", args.url]
    done = subprocess.run(argv, input=quote.raw, capture_output=True, check=False)
    if done.returncode:
        said = done.stdout.decode(errors="replace")[:300] or f"the client ended with {done.returncode}"
        raise HardwareUnavailable("collateral.fetch", f"{args.url}: {said}", hint="see that the PCCS answers")
    found = strict.load_json(done.stdout, error=MalformedEvidence, family="collateral", limit=4 << 20)
    found.pop("pck_certificate_chain", None)  # the quote carries its own
    text = TdxCollateral.parse(json.dumps(found).encode()).text
    if args.out is None:
        print(text)
    else:
        _replace(Path(args.out), text + "\n")
    return 0


def _replace(path: Path, text: str) -> None:
    """Old or new, and never half of it. Raises ConfigError `cli.file`."""
    made = path.with_name(f".{path.name}.{os.getpid()}")  # no `*.json`: the broker does not read it
    try:
        with made.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        made.replace(path)
    except OSError as e:
        made.unlink(missing_ok=True)
        raise ConfigError("cli.file", f"{path}: {e.strerror}", hint="name a file in a folder that exists") from e


def collateral_show(args: argparse.Namespace) -> int:
    """`antechamber collateral show FILE`."""
    from antechamber.evidence.collateral import TdxCollateral

    collateral = TdxCollateral.parse(read(args.file))
    facts = {
        "fmspc": collateral.fmspc,
        "tcb_evaluation_data_number": collateral.tcb_evaluation_data_number,
        "issue_date": collateral.issue_date,
        "next_update": collateral.next_update,
    }
    print(json.dumps(facts) if args.json else os.linesep.join(f"{k:<27} {v}" for k, v in facts.items()))
    return 0
