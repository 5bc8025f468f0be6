"""Bundles on disk, for an audit months later: exactly as served, judged at the time the broker signed."""

import contextlib
import os
from pathlib import Path
from typing import Protocol

from antechamber.errors import ConfigError
from antechamber.evidence.appraise import AttestationResult
from antechamber.evidence.bundle import Bundle, parse_bundle, verify_bundle
from antechamber.evidence.policy import Policy


class Served(Protocol):
    """Anything that still has the text a guest served."""

    @property
    def text(self) -> bytes: ...


def save(path: Path, served: Served) -> None:
    """Whole or not at all, readable by all: a bundle holds nothing secret. Raises ConfigError `save.file`."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb") as file:
            file.write(served.text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as e:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise ConfigError("save.file", f"{path}: {e.strerror}", hint="name a file that can be written") from e


def verify_saved(text: bytes, policy: Policy) -> tuple[AttestationResult, Bundle]:
    """Verify a saved bundle offline, at the broker-signed time in it.

    Its nonce was somebody's: that it is fresh is not appraised. Raises MalformedEvidence, AppraisalRefused.
    """
    bundle = parse_bundle(text)
    return verify_bundle(bundle, policy, nonce=None, now=None), bundle
