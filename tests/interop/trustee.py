"""A double of Trustee's KBS on loopback, written from the reference: what it verifies, and every answer of its.

It verifies bindings and structure, never a signature, so it releases to anyone: a tool for tests, with test values.
By itself: `PYTHONPATH=tests python -m interop.trustee --listen 127.0.0.1:8080 [--knob NAME=VALUE]`, for any client.
"""

import argparse
import asyncio
import datetime as dt
import ipaddress
import signal
import ssl
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from interop.trustee_double import Double, Knobs
from interop.trustee_seal import Signer

HEAD = 128 << 10  # bytes: actix's limit


async def _bare(request: web.Request, response: web.StreamResponse) -> None:
    """Trustee's errors have no Content-Type, which aiohttp would add."""
    if response.headers.get("Content-Type") == "antechamber/remove":
        del response.headers["Content-Type"]


def authority(names: tuple[str, ...] = ("localhost",)) -> tuple[Signer, bytes]:
    """A CA, and a leaf that signs tokens and serves TLS at `names` and 127.0.0.1."""
    now, root = dt.datetime.now(dt.UTC), ec.generate_private_key(ec.SECP256R1())
    leaf = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "A double's CA")])

    def certificate(subject: x509.Name, key: ec.EllipticCurvePublicKey, is_ca: bool) -> x509.Certificate:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - dt.timedelta(1)).not_valid_after(now + dt.timedelta(2))
        builder = builder.add_extension(x509.BasicConstraints(is_ca, None), critical=True)
        usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
                               "encipher_only", "decipher_only"), False)  # fmt: skip
        usage |= {"digital_signature": not is_ca, "key_cert_sign": is_ca, "crl_sign": is_ca}
        builder = builder.add_extension(x509.KeyUsage(**usage), critical=True)
        if not is_ca:
            alternatives = [*map(x509.DNSName, names), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        own = x509.SubjectKeyIdentifier.from_public_key(key)
        theirs = x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key())
        builder = builder.add_extension(own, critical=False).add_extension(theirs, critical=False)
        return builder.sign(root, SHA256())

    ca = certificate(issuer, root.public_key(), True)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a double")])
    return Signer(leaf, (certificate(subject, leaf.public_key(), False), ca)), ca.public_bytes(Encoding.PEM)


async def _listen(double: Double, directory: Path, host: str, port: int, tls: bool) -> tuple[web.AppRunner, str]:
    app = web.Application(client_max_size=16 << 20)
    app.router.add_route("*", "/{path:.*}", double.answer)
    app.on_response_prepare.append(_bare)
    runner = web.AppRunner(app, access_log=None, max_field_size=HEAD, max_line_size=HEAD)
    await runner.setup()
    context = None
    if tls:
        (directory / "ca.pem").write_bytes(double.ca)
        pem = double.signer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        chain = b"".join(c.public_bytes(Encoding.PEM) for c in double.signer.chain)
        (directory / "server.pem").write_bytes(pem + chain)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "server.pem")
    site = web.TCPSite(runner, host, port, ssl_context=context)
    await site.start()
    taken = runner.addresses[0][1]
    return runner, f"http{'s' if tls else ''}://{host}:{taken}"


@contextmanager
def serving(double: Double, directory: Path, *, tls: bool = True) -> Iterator[str]:
    """The double in a thread; its URL. With TLS its CA is `directory`/ca.pem."""
    loop, ready, found = asyncio.new_event_loop(), threading.Event(), [""]
    stop = asyncio.Event()

    async def serve() -> None:
        runner, found[0] = await _listen(double, directory, "127.0.0.1", 0, tls)
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m interop.trustee", description=__doc__.partition("\n")[0])
    p.add_argument("--listen", default="127.0.0.1:8080")
    p.add_argument("--tls", type=Path, metavar="DIR", help="serve HTTPS, and leave ca.pem there")
    p.add_argument("--resource", action="append", default=[], metavar="PATH=TEXT")
    p.add_argument(
        "--knob", action="append", default=[], metavar="NAME=VALUE", help=", ".join(f.name for f in fields(Knobs))
    )
    args = p.parse_args(argv)
    knobs = Knobs()
    for setting in args.knob:
        name, _, value = setting.partition("=")
        kinds = {f.name: type(getattr(Knobs(), f.name)) for f in fields(Knobs)}
        if name not in kinds:
            p.error(f"no knob {name}: {', '.join(kinds)}")
        if kinds[name] is bool and value not in ("0", "1"):
            p.error(f"--knob {setting}: {name} is 1 or 0")
        try:
            setattr(knobs, name, value == "1" if kinds[name] is bool else kinds[name](value))
        except ValueError:
            p.error(f"--knob {setting}: {name} is a number")
    if wrong := [r for r in args.resource if "=" not in r]:
        p.error(f"--resource {wrong[0]} is not PATH=TEXT")
    signer, ca = authority()
    double = Double(knobs, signer, ca, {k: v.encode() for k, v in (r.split("=", 1) for r in args.resource)})
    host, _, port = args.listen.rpartition(":")
    if not host or not port.isdecimal():
        p.error(f"--listen {args.listen} is not ADDRESS:PORT")

    async def serve() -> None:
        directory = args.tls or Path(tempfile.gettempdir())
        _, url = await _listen(double, directory, host, int(port), args.tls is not None)
        print(f"listening at {url}", flush=True)
        shown = complained = 0
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):  # a shell that starts it in the background has SIGINT ignored
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        while not stop.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.2)
            for line in double.seen[shown:]:
                print(line, flush=True)
            shown = len(double.seen)
            for line in (*double.log, *double.wrong[complained:]):
                print("refused: " + line, flush=True)
            complained = len(double.wrong)
            double.log.clear()

    asyncio.run(serve())
    return 1 if double.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
