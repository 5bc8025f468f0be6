import pytest
from packages import KEY, Package, hkdf

from antechamber.errors import ModelCorrupt
from antechamber.model.cipher import Layout, PackageKeys
from antechamber.secret import Secret

ID = bytes(range(100, 116))


def keys(key: bytes = KEY) -> PackageKeys:
    return PackageKeys.derive(Secret(bytearray(key)), ID)


@pytest.mark.parametrize(
    ("size", "segments", "stored"),
    [(0, 1, 16), (1, 1, 17), (4096, 1, 4112), (4097, 2, 8192 + 17), (8192, 2, 8192 + 4112), (10_000, 3, 16384 + 1824)],
)
def test_layout_counts_segments_and_stored_bytes(size: int, segments: int, stored: int) -> None:
    layout = Layout(size, 4096)
    assert (layout.segments, layout.stored_size, layout.stride) == (segments, stored, 8192)
    assert sum(layout.length(i) for i in range(segments)) == size
    assert sum(layout.stored_length(i) for i in range(segments)) == stored


def test_layout_pads_little_when_segments_are_large() -> None:
    assert Layout(0, 256 << 10).stride == (256 << 10) + 4096


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 8192, 12_289])
def test_cipher_seals_as_the_format_says_and_opens_in_place(size: int) -> None:
    data = bytes(i % 251 for i in range(size))
    cipher = keys().file(Layout(size, 4096), 7, "a/b")
    buffer = memoryview(bytearray(cipher.layout.stride))
    sealed, opened = b"", b""
    for i in range(cipher.layout.segments):
        part = data[i * 4096 : (i + 1) * 4096]
        buffer[: len(part)] = part
        sealed += cipher.seal(i, buffer)
        opened += cipher.open(i, buffer)
    assert sealed == Package().seal_file("a/b", 7, data)
    assert opened == data


def test_keys_differ_by_path_by_number_and_by_package() -> None:
    def sealed(number: int, path: str, package: bytes = ID) -> bytes:
        other = PackageKeys.derive(Secret(bytearray(KEY)), package)
        return bytes(other.file(Layout(4, 4096), number, path).seal(0, memoryview(bytearray(8192))))[:4]

    found = {sealed(0, "a"), sealed(1, "a"), sealed(0, "b"), sealed(0, "a", bytes(16))}
    assert len(found) == 4  # the first bytes are the key stream: the AAD changes only the tag


def test_key_check_is_the_one_of_the_format_and_refuses_another_key() -> None:
    check = hkdf(KEY, ID, b"antechamber-sealed/1/key-check", 16).hex()
    keys().require_check(check)
    with pytest.raises(ModelCorrupt) as refused:
        keys(bytes(32)).require_check(check)
    assert refused.value.code == "model.key"


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_keys_refuse_when_the_key_is_not_32_bytes(size: int) -> None:
    with pytest.raises(ModelCorrupt) as refused:
        keys(bytes(size))
    assert refused.value.code == "model.key"


def test_keys_spend_the_secret_and_never_print_it() -> None:
    secret = Secret(bytearray(KEY))
    derived = PackageKeys.derive(secret, ID)
    with pytest.raises(RuntimeError), secret:
        pass
    assert hkdf(KEY, ID, b"", 32).hex() not in repr(derived)
    assert "prk" not in repr(derived)
    assert "gcm" not in repr(derived.file(Layout(0, 4096), 0, "a"))
