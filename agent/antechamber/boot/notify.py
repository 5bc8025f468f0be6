"""sd_notify in ten lines: systemd-python needs a compiler, this does not. Source: sd_notify(3)."""

import os
import socket


def notify(state: str) -> None:
    """Tell systemd, if it listens: `READY=1`, `STATUS=...`, `WATCHDOG=1`."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        path = "\0" + address[1:] if address.startswith("@") else address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect(path)
            sock.sendall(state.encode())
