"""A small CC event log, as firmware and boot stub leave it, and the registers that replay from it.

Source: TCG PC Client Platform Firmware Profile, crypto-agile log; UEFI 2.11, 38 (register 0 is MRTD, 1 is RTMR0).
"""

import hashlib
import struct

AREA = 0x10000  # bytes that the firmware reserves; unused ones are FF
_SHA384 = 0x000C
_NO_ACTION, _SEPARATOR, _EFI_ACTION, _IPL, _PLATFORM_CONFIG = 3, 4, 0x80000007, 0x0D, 0x0A
_EVENTS = (
    (1, _PLATFORM_CONFIG, b"TDX simulated: VM shape"),
    (1, _SEPARATOR, bytes(4)),
    (2, _EFI_ACTION, b"Calling EFI Application from Boot Option"),
    (2, _SEPARATOR, bytes(4)),
    (2, _EFI_ACTION, b"Exit Boot Services Invocation"),
    (3, _IPL, b"simulated: unified kernel image, command line"),
    (3, _IPL, b"simulated: initrd"),
)


def log() -> bytes:
    """The whole area, padding included."""
    spec = b"Spec ID Event03\0" + struct.pack("<IBBBBIHHB", 0, 0, 2, 0, 2, 1, _SHA384, 48, 0)
    header = struct.pack("<II20sI", 1, _NO_ACTION, b"", len(spec)) + spec
    records = b"".join(_record(register, kind, data) for register, kind, data in _EVENTS)
    return (header + records).ljust(AREA, b"\xff")


def registers() -> tuple[bytes, bytes, bytes]:
    """RTMR0 to RTMR2 as the log replays."""
    values = [bytes(48)] * 3
    for register, _, data in _EVENTS:
        values[register - 1] = hashlib.sha384(values[register - 1] + hashlib.sha384(data).digest()).digest()
    return values[0], values[1], values[2]


def _record(register: int, kind: int, data: bytes) -> bytes:
    head = struct.pack("<IIIH", register, kind, 1, _SHA384) + hashlib.sha384(data).digest()
    return head + struct.pack("<I", len(data)) + data
