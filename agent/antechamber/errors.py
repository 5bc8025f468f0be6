"""Families of refusal. Each code is `family.reason`, never changes, and is listed in the README."""

import re
from typing import ClassVar

MAX_DETAIL = 4000  # characters
_CODE = re.compile(r"[a-z][a-z-]*(\.[a-z0-9]+(-[a-z0-9]+)*){1,2}")


class AgentError(Exception):
    """A refusal the operator can act on: a stable code, what was seen, what to do next.

    What was seen may be an attacker's: it is cut, and it is text, so that every log, database and peer takes it.
    """

    exit_status: ClassVar[int] = 70

    def __init__(self, code: str, detail: str, *, hint: str) -> None:
        detail = detail[:MAX_DETAIL].encode("utf-8", "replace").decode()  # half a surrogate pair becomes `?`
        super().__init__(f"{code}: {detail}")
        self.code, self.detail, self.hint = code, detail, hint


class MalformedEvidence(AgentError):
    """Bytes that do not parse as the Evidence they claim to be."""

    exit_status = 65


class ModelCorrupt(AgentError):
    """A sealed model that does not authenticate, or whose content is not MODEL_HASH."""

    exit_status = 65


class PlatformUnfit(AgentError):
    """A machine that no Appraisal Policy would accept."""

    exit_status = 69


class EngineFailed(AgentError):
    """An engine that died, never answered, or answered the golden prompt wrong."""

    exit_status = 70


class HardwareUnavailable(AgentError):
    """The kernel or NVML did not answer, or not as its ABI says."""

    exit_status = 75


class BrokerUnreachable(AgentError):
    """No answer from the key broker, or none that speaks its protocol."""

    exit_status = 75


class AppraisalRefused(AgentError):
    """Well-formed Evidence that the Appraisal Policy does not accept. Never retried."""

    exit_status = 77


class BrokerDenied(AgentError):
    """The key broker answered, and the answer is no."""

    exit_status = 77


class ConfigError(AgentError):
    """A configuration, policy or command line that says nothing valid."""

    exit_status = 78


def is_code(value: object) -> bool:
    """Whether a peer's word for why is one of ours in form: `family.reason`."""
    return isinstance(value, str) and len(value) <= 64 and bool(_CODE.fullmatch(value))
