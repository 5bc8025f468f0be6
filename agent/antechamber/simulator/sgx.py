"""The SGX extension of a PCK certificate. Source: Intel SGX PCK Certificate and CRL Profile, 1.3.5."""

from dataclasses import dataclass

SGX = "1.2.840.113741.1.13.1"
_SEQUENCE, _OID, _INTEGER, _OCTETS, _BOOLEAN, _ENUMERATED = 0x30, 0x06, 0x02, 0x04, 0x01, 0x0A


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What Intel certifies of one machine."""

    ppid: bytes  # 16
    instance: bytes  # 16
    fmspc: bytes = bytes.fromhex("00806f050000")
    cpu_svn: bytes = bytes([5, 5, 2, 2, 3, 1, 0, 3, *[0] * 8])
    pce_svn: int = 13
    pce_id: bytes = bytes(2)
    dynamic: bool = True  # as every real TDX platform seen
    cached_keys: bool = False
    smt: bool = True


def sgx_extension(platform: Platform) -> bytes:
    """DER of the extension's value."""
    svns = [_pair(f"2.{i}", _integer(n)) for i, n in enumerate(platform.cpu_svn, start=1)]
    svns += [_pair("2.17", _integer(platform.pce_svn)), _pair("2.18", _tlv(_OCTETS, platform.cpu_svn))]
    configuration = _sequence(
        _pair("7.1", _boolean(platform.dynamic)),
        _pair("7.2", _boolean(platform.cached_keys)),
        _pair("7.3", _boolean(platform.smt)),
    )
    return _sequence(
        _pair("1", _tlv(_OCTETS, platform.ppid)),
        _pair("2", _sequence(*svns)),
        _pair("3", _tlv(_OCTETS, platform.pce_id)),
        _pair("4", _tlv(_OCTETS, platform.fmspc)),
        _pair("5", _tlv(_ENUMERATED, b"\x01")),  # scalable
        _pair("6", _tlv(_OCTETS, platform.instance)),
        _pair("7", configuration),
    )


def _tlv(tag: int, value: bytes) -> bytes:
    size = len(value)
    if size < 0x80:
        length = bytes([size])
    else:
        digits = size.to_bytes((size.bit_length() + 7) // 8, "big")
        length = bytes([0x80 | len(digits)]) + digits
    return bytes([tag]) + length + value


def _sequence(*items: bytes) -> bytes:
    return _tlv(_SEQUENCE, b"".join(items))


def _pair(suffix: str, value: bytes) -> bytes:
    return _sequence(_oid(f"{SGX}.{suffix}"), value)


def _integer(number: int) -> bytes:
    return _tlv(_INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def _boolean(value: bool) -> bytes:
    return _tlv(_BOOLEAN, b"\xff" if value else b"\0")


def _oid(dotted: str) -> bytes:
    first, second, *arcs = (int(part) for part in dotted.split("."))
    encoded = bytes([first * 40 + second])
    for arc in arcs:
        digits = [arc & 0x7F]
        while arc := arc >> 7:
            digits.insert(0, arc & 0x7F | 0x80)
        encoded += bytes(digits)
    return _tlv(_OID, encoded)
