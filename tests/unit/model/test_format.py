"""docs/model-format.md says what both writers do."""

import re
from pathlib import Path

from packages import KEY, Package, hkdf

from antechamber.model.cipher import Layout, PackageKeys
from antechamber.model.inert import CODE_SUFFIXES
from antechamber.secret import Secret

PAGE = (Path(__file__).parents[3] / "docs" / "model-format.md").read_text()


def vector(name: str) -> str:
    found = re.search(rf"^{re.escape(name)}\s+(\S+)", PAGE, re.MULTILINE)
    assert found
    return found[1]


def test_the_vector_of_the_page_is_what_both_writers_seal() -> None:
    example = Package(files=[("a/b", b"antechamber")], package=bytes.fromhex(vector("package id")))
    keys = PackageKeys.derive(Secret(bytearray(KEY)), example.package)
    assert bytes.fromhex(vector("model key")) == KEY
    assert vector("key check") == keys.check
    assert vector("manifest key") == hkdf(KEY, example.package, b"antechamber-sealed/1/manifest", 32).hex()
    assert vector("MODEL_HASH") == example.model_hash
    buffer = memoryview(bytearray(8192))
    buffer[:11] = b"antechamber"
    sealed = bytes(keys.file(Layout(11, 4096), 0, "a/b").seal(0, buffer))
    assert vector("data/0...") == sealed.hex() == example.seal_file("a/b", 0, b"antechamber").hex()


def test_the_page_lists_every_suffix_that_is_refused() -> None:
    assert " ".join(CODE_SUFFIXES) in PAGE


def test_the_page_names_every_code_of_the_reader() -> None:
    source = "".join(
        p.read_text() for p in (Path(__file__).parents[3] / "agent" / "antechamber" / "model").glob("*.py")
    )
    raised = set(re.findall(r'"(model\.[a-z-]+)"', source)) - {"model.parameter", "model.changed"}  # packing's
    assert {code for code in raised if f"`{code}`" not in PAGE} == set()
