"""The few DER forms that the vendors' own certificate extensions need. Source: ITU-T X.690."""

SHA384 = "2.16.840.1.101.3.4.2.2"


def tlv(tag: int, value: bytes) -> bytes:
    size = len(value)
    if size < 0x80:
        length = bytes([size])
    else:
        digits = size.to_bytes((size.bit_length() + 7) // 8, "big")
        length = bytes([0x80 | len(digits)]) + digits
    return bytes([tag]) + length + value


def sequence(*items: bytes) -> bytes:
    return tlv(0x30, b"".join(items))


def octets(value: bytes) -> bytes:
    return tlv(0x04, value)


def integer(number: int) -> bytes:
    return tlv(0x02, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def boolean(value: bool) -> bytes:
    return tlv(0x01, b"\xff" if value else b"\0")


def oid(dotted: str) -> bytes:
    first, second, *arcs = (int(part) for part in dotted.split("."))
    encoded = bytes([first * 40 + second])
    for arc in arcs:
        digits = [arc & 0x7F]
        while arc := arc >> 7:
            digits.insert(0, arc & 0x7F | 0x80)
        encoded += bytes(digits)
    return tlv(0x06, encoded)
