"""Model trees that run nothing: no Python, no pickles, no configuration that names code to import."""

import json
from typing import Any

from antechamber.errors import ModelCorrupt

MAX_CONFIG = 16 << 20  # bytes of one *config.json

# What Python, PyTorch or the dynamic loader would execute when an engine loads it. Sources: CVE-2025-32444,
# CVE-2026-22807 (auto_map ran despite trust_remote_code=False).
CODE_SUFFIXES = (
    *(".py", ".pyc", ".pyo", ".pyw", ".pyd", ".so"),
    *(".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill"),
)
_HINT = "convert the weights to safetensors, and drop custom code"


def refuse_code(path: str) -> None:
    """Refuse a name that an engine would load as code. Raises ModelCorrupt `model.code`."""
    if path.lower().endswith(CODE_SUFFIXES):
        raise ModelCorrupt("model.code", f"{path!r} can carry code", hint=_HINT)


def is_config(path: str) -> bool:
    """Whether transformers and its kin may read `path` as configuration: config.json, tokenizer_config.json..."""
    return path.lower().endswith("config.json")


class ConfigGuard:
    """Keeps the bytes of one configuration file as they stream by, and refuses them if they name code.

    Raises ModelCorrupt `model.code`. Nothing is kept of other files.
    """

    __slots__ = ("_kept", "path")

    def __init__(self, path: str) -> None:
        refuse_code(path)
        self.path, self._kept = path, bytearray() if is_config(path) else None

    def update(self, plaintext: memoryview) -> None:
        if self._kept is None:
            return
        if len(self._kept) + len(plaintext) > MAX_CONFIG:
            raise ModelCorrupt("model.code", f"{self.path!r} is over {MAX_CONFIG} bytes", hint=_HINT)
        self._kept += plaintext

    def finish(self) -> None:
        if self._kept is None:
            return
        try:
            json.loads(self._kept.decode(), object_pairs_hook=self._pairs)
        except (ValueError, RecursionError) as e:  # what we cannot read, we cannot call harmless
            raise ModelCorrupt("model.code", f"{self.path!r} is not JSON in UTF-8", hint="correct the file") from e

    def _pairs(self, pairs: list[tuple[str, Any]]) -> None:
        if any(key == "auto_map" for key, _ in pairs):
            raise ModelCorrupt("model.code", f"{self.path!r} has auto_map, which imports code", hint=_HINT)
