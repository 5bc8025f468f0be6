"""A micro VM under QEMU's TCG: a kernel, an initramfs and what one run adds to it; what it said on its second port."""

import contextlib
import json
import shutil
import stat
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antechamber.simulator import ccel

BROKER = "10.0.2.100"  # as the guest sees it: the only address that QEMU's network answers for, with one port
PORT = 8443
CMDLINE = "console=ttyS0 panic=-1 loglevel=4 memmap=64K$0x30000000 roothash={roothash}"
INIT_S, RUN_S = 90, 420  # until /init runs; until the power-off
_CCEL_AT = 0x30000000  # reserved by memmap; 64 KiB
_CCEL = struct.Struct("<4sIBB6s8sI4sIBBHQQ")  # ACPI 6.5, CC Event Log ACPI Table; its first 36 bytes are the header
# /dev/kvm may exist and not work: never used.
_QEMU = ("qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "1024")
_QEMU += ("-display", "none", "-nodefaults", "-no-reboot")
_IN_ROOT = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && cd "$0" && exec chroot "$0" "$@"'


class NeverStarted(Exception):
    """The guest did not reach /init: QEMU's firmware hangs once in a while. Tried once more, and only this."""


@dataclass(frozen=True)
class Run:
    """What one VM said: JSON objects, and its console for whoever looks for the reason."""

    records: tuple[dict[str, Any], ...]
    console: str
    seconds: float

    def one(self, key: str) -> Any:
        """The value of the one record that has `key`."""
        (found,) = [r[key] for r in self.records if key in r]
        return found

    def boot(self, name: str) -> dict[str, Any]:
        (found,) = [r for r in self.records if r.get("boot") == name]
        return found

    @property
    def faults(self) -> dict[str, dict[str, Any]]:
        return {r["fault"]: r for r in self.records if "fault" in r}


def run(images: Path, kernel: str, files: Mapping[str, tuple[int, bytes]], broker_port: int) -> Run:
    """Boot, and wait for the power-off. Raises AssertionError with the console where it came to no end."""
    for attempt in (1, 2):
        try:
            with _folder(images) as folder:
                return _once(images, folder, kernel, files, broker_port)
        except NeverStarted as error:
            print(f"vm: kernel {kernel}: {error}")
            if attempt == 2:
                raise AssertionError(str(error)) from error
    raise AssertionError


@contextlib.contextmanager
def _folder(images: Path) -> Iterator[Path]:
    """In the root that QEMU runs in; removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=images / "root"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _once(images: Path, folder: Path, kernel: str, files: Mapping[str, tuple[int, bytes]], broker_port: int) -> Run:
    begin = time.monotonic()
    command = _prepare(images, folder, kernel, files, broker_port)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as qemu:
        try:
            _await(qemu, folder, kernel)
        finally:
            qemu.kill()
        assert qemu.stdout is not None
        said = qemu.stdout.read().decode(errors="replace")
    records = _records(folder)
    console = _text(folder / "console") + said
    (images / f"console-{kernel}").write_text(console)
    ended = any("done" in record for record in records)
    assert ended, f"kernel {kernel}: came to no end; {records[-1:]}\n{console[-8000:]}"
    return Run(tuple(records), console, round(time.monotonic() - begin, 1))


def _await(qemu: "subprocess.Popen[bytes]", folder: Path, kernel: str) -> None:
    begin = time.monotonic()
    while qemu.poll() is None and (spent := time.monotonic() - begin) < RUN_S:
        if spent > INIT_S and not _text(folder / "results"):
            raise NeverStarted(f"not at /init after {INIT_S} s\n{_text(folder / 'console')[-2000:]}")
        time.sleep(0.2)
    print(f"vm: kernel {kernel}: {time.monotonic() - begin:.0f} s")


def _prepare(
    images: Path, folder: Path, kernel: str, files: Mapping[str, tuple[int, bytes]], broker_port: int
) -> list[str]:
    """Everything that QEMU reads, and its command, inside the root."""
    with (folder / "initramfs").open("wb") as out:
        out.write((images / f"initramfs-{kernel}").read_bytes())
        out.write(archive(files))
    shutil.copy(images / f"vmlinuz-{kernel}", folder / "vmlinuz")
    (folder / "ccel").write_bytes(ccel.log())
    (folder / "ccel-table").write_bytes(ccel_table())
    at = f"/{folder.name}"
    network = f"user,id=n,restrict=on,guestfwd=tcp:{BROKER}:{PORT}-cmd:/usr/bin/busybox nc 127.0.0.1 {broker_port}"
    return [
        *("unshare", "--mount", "--propagation", "private", "--", "sh", "-c", _IN_ROOT, str(images / "root")),
        *_QEMU,
        *("-kernel", f"{at}/vmlinuz", "-initrd", f"{at}/initramfs", "-append", CMDLINE.format(roothash="5a" * 32)),
        *("-serial", f"file:{at}/console", "-serial", f"file:{at}/results"),
        *("-netdev", network, "-device", "virtio-net-pci,netdev=n,romfile="),
        *("-acpitable", f"file={at}/ccel-table"),
        *("-device", f"loader,file={at}/ccel,addr={_CCEL_AT:#x},force-raw=on"),
    ]


def ccel_table() -> bytes:
    """The ACPI table that says where the event log lies; checksum included."""
    fields = (_CCEL.size, 1, 0, b"SIMTDX", b"SIMULATE", 1, b"SIM ", 1, 2, 0, 0, ccel.AREA, _CCEL_AT)
    raw = bytearray(_CCEL.pack(b"CCEL", *fields))
    raw[9] = -sum(raw) & 0xFF
    return bytes(raw)


def archive(files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """A cpio of absolute path to mode and content. The kernel unpacks it after the first one."""
    folders = {str(p): (stat.S_IFDIR | 0o700, b"") for name in files for p in Path(name).parents if str(p) != "/"}
    regular = {name: (stat.S_IFREG | mode, data) for name, (mode, data) in files.items()}
    members = [*sorted(folders.items()), *sorted(regular.items()), ("/TRAILER!!!", (0, b""))]
    out = b""
    for number, (name, (mode, data)) in enumerate(members, 1):
        path = name[1:].encode() + b"\0"
        numbers = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        head = b"070701" + "".join(f"{n:08x}" for n in numbers).encode() + path
        out += head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
    return out


def _records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _text(folder / "results").splitlines() if line.startswith("{")]


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
