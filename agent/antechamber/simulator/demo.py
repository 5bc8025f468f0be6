"""`scripts/demo`: the main job on simulated hardware, then three attacks, each refused and named by its code."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from antechamber.errors import AgentError
from antechamber.simulator.deployment import Deployment, Ended, prepared, working_folder

QUESTION = "What is Antechamber?"


class Say:
    """Numbered steps with the time since the start."""

    def __init__(self) -> None:
        self._start, self._step = time.monotonic(), 0

    def step(self, text: str) -> None:
        self._step += 1
        self.line(
            f"\n\033[1m{self._step}. {text}\033[0m" if sys.stdout.isatty() else f"\n{self._step}. {text}", stamp=True
        )

    def line(self, text: str, *, stamp: bool = False) -> None:
        head, _, rest = text.lstrip("\n").partition("\n")
        blank = "\n" if text.startswith("\n") else ""
        clock = f"[{time.monotonic() - self._start:5.1f} s] " if stamp else " " * 10
        print(blank + clock + head, flush=True)
        for more in rest.splitlines():
            print(" " * 10 + more, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument(
        "--standin", action="store_true", help="stand-ins at the ports, even where the real ABI can be simulated"
    )
    parser.add_argument("--keep", action="store_true", help="leave the work folder, and say where")
    args = parser.parse_args()
    say = Say()
    try:
        with working_folder(keep=args.keep) as root:
            show(root, say, standin=args.standin)
    except AgentError as e:
        print(f"\nthe demo failed: {e}\n{e.hint}", file=sys.stderr)
        return e.exit_status
    except Ended:
        print("\nthe demo was stopped; nothing is left", file=sys.stderr)
        return 130
    left = f"the work folder is {root}" if args.keep else "nothing is left on this machine"
    say.step(f"done: one good boot, one verified answer, three attacks refused; {left}")
    return 0


def show(root: Path, say: Say, *, standin: bool) -> None:
    """The whole demo; every process is gone when it returns."""
    say.step("SIMULATED hardware: production code, but the evidence proves nothing about this machine")
    deployment = prepared(root, say.line, standin=standin)
    try:
        boot_and_ask(deployment, say)
        attacks(deployment, say)
    finally:
        deployment.stop()


def boot_and_ask(deployment: Deployment, say: Say) -> None:
    say.step("boot: prove the machine, get the keys, unlock and verify the model, start the engine")
    deployment.start_guest()
    deployment.await_serving()
    for line in machine_lines(deployment):
        say.line(line)
    say.step(f"verify before the first prompt: antechamber verify {deployment.url} --policy policy.yaml")
    say.line(deployment.antechamber("verify", deployment.url, "--policy", str(deployment.client_policy)).rstrip())
    say.step(f"ask over attested TLS: {QUESTION}")
    answer, digest = ask(deployment)
    say.line(f"answer: {answer}")
    say.line(f"x-tdx-quote-sha256: {digest}")
    say.step("save the evidence of that call, and verify it again, offline, in a new process")
    saved = str(deployment.root / "evidence.json")
    policy = ("--policy", str(deployment.client_policy))
    deployment.antechamber("verify", deployment.url, *policy, "--quote", digest, "--save", saved)
    say.line(summary(deployment.antechamber("verify", "--bundle", saved, *policy, "--json")))
    say.line(f"saved evidence: {Path(saved).stat().st_size} bytes, good for an audit with the policy alone")
    status = deployment.stop_guest()
    say.line(
        f"stopped: exit status {status}, port closed, model wiped: {not (deployment.runtime_dir / 'model').exists()}"
    )


def machine_lines(deployment: Deployment) -> list[str]:
    """What was real and what stood in, as the simulator said."""
    lines = (deployment.root / "guest.log").read_text(errors="replace").splitlines()
    return [line for line in lines if "real ABI" in line or "stands in" in line]


def ask(deployment: Deployment) -> tuple[str, str]:
    """One question with the openai package, over the verified key only."""
    from openai import OpenAI

    from antechamber.client.pinned import openai_http_client
    from antechamber.evidence.policy import load_policy

    policy = load_policy(deployment.client_policy.read_bytes())
    with openai_http_client(deployment.url, policy) as http_client:
        client = OpenAI(base_url=f"{deployment.url}/v1", api_key="none", http_client=http_client, max_retries=0)  # type: ignore[arg-type]  # openai 3 types httpx2 and takes httpx too
        raw = client.chat.completions.with_raw_response.create(
            model=deployment.model_name, messages=[{"role": "user", "content": QUESTION}], max_tokens=64, temperature=0
        )
    return raw.parse().choices[0].message.content or "", raw.headers["x-tdx-quote-sha256"]


def summary(report: str) -> str:
    claims = json.loads(report)["claims"]
    count = {outcome: sum(c["outcome"] == outcome for c in claims) for outcome in ("held", "failed", "not-appraised")}
    return ", ".join(f"{n} {outcome.replace('-', ' ')}" for outcome, n in count.items())


def attacks(deployment: Deployment, say: Say) -> None:
    say.step("attack: the host flips one byte of the encrypted model on its disk")
    data = sorted((deployment.package / "data").iterdir(), key=lambda p: p.stat().st_size)[-1]
    flip(data)
    expect(deployment, say, "model.segment")
    flip(data)
    say.step("attack: the host launches a debug TD, whose memory it can read")
    expect(deployment, say, "tdx.debug", "debug=true")
    say.step("attack: the host attaches a GPU with CC mode off")
    expect(deployment, say, "gpu.cc-mode", "cc=false")


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def expect(deployment: Deployment, say: Say, code: str, *knobs: str) -> None:
    """The boot is refused with this code, and nothing is left. Raises AgentError otherwise."""
    refusal = deployment.boot_refused(*knobs)
    if refusal.get("code") != code:
        raise AgentError(
            "demo.attack", f"expected {code}, the guest said {refusal or 'nothing'}", hint="a guard is broken"
        )
    status = deployment.guest.returncode if deployment.guest else None
    say.line(f"refused with {code}, exit status {status}: {refusal['detail']}")
    say.line(f"what to do: {refusal['hint']}")
    if (deployment.runtime_dir / "model").exists():
        raise AgentError("demo.attack", "plaintext is left behind", hint="a guard is broken")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.TimeoutExpired as e:
        sys.exit(f"the demo hangs: {e}")
