"""The SGX extension of a PCK certificate. Source: Intel SGX PCK Certificate and CRL Profile, 1.3.5."""

from dataclasses import dataclass

from antechamber.simulator.asn1 import boolean, integer, octets, oid, sequence, tlv

SGX = "1.2.840.113741.1.13.1"


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
    svns = [_pair(f"2.{i}", integer(n)) for i, n in enumerate(platform.cpu_svn, start=1)]
    svns += [_pair("2.17", integer(platform.pce_svn)), _pair("2.18", octets(platform.cpu_svn))]
    configuration = sequence(
        _pair("7.1", boolean(platform.dynamic)),
        _pair("7.2", boolean(platform.cached_keys)),
        _pair("7.3", boolean(platform.smt)),
    )
    return sequence(
        _pair("1", octets(platform.ppid)),
        _pair("2", sequence(*svns)),
        _pair("3", octets(platform.pce_id)),
        _pair("4", octets(platform.fmspc)),
        _pair("5", tlv(0x0A, b"\x01")),  # ENUMERATED: scalable
        _pair("6", octets(platform.instance)),
        _pair("7", configuration),
    )


def _pair(suffix: str, value: bytes) -> bytes:
    return sequence(oid(f"{SGX}.{suffix}"), value)
