"""Who may administer: a JWT signed with the owner's Ed25519 key. Source: KBS protocol 0.4.0, administration."""

import time
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from antechamber.broker.settings import AdminSettings
from antechamber.errors import BrokerDenied, ConfigError

LIFETIME_S = 300
_LONGEST_S = 86400  # a token that lives longer is a password
_ALGORITHMS = ["EdDSA", "Ed25519"]  # two names of one algorithm: RFC 8037, RFC 9864


def _denied(detail: str) -> BrokerDenied:
    return BrokerDenied("admin.token", detail, hint="sign an EdDSA JWT with the broker's admin key")


@dataclass(frozen=True, slots=True)
class AdminVerifier:
    """The one key, and the claims its tokens must carry."""

    key: Ed25519PublicKey
    settings: AdminSettings

    def require(self, token: str | None, now: int) -> str:
        """Verify a token; its subject, for the audit. Raises BrokerDenied `admin.token`."""
        from joserfc import jwt  # noqa: PLC0415  # an extra, that a guest does without
        from joserfc.errors import JoseError  # noqa: PLC0415
        from joserfc.jwk import OKPKey  # noqa: PLC0415

        if token is None:
            raise _denied("no token")
        public = self.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        try:
            claims = jwt.decode(token, OKPKey.import_key(public), algorithms=_ALGORITHMS).claims
        except (JoseError, ValueError, TypeError) as e:  # TypeError: a header such as `crit: 5`
            raise _denied("its signature does not verify with the admin key") from e
        self._require_claims(claims, now)
        return str(claims.get("sub", ""))[:64]

    def _require_claims(self, claims: dict[str, Any], now: int) -> None:
        exp, nbf, audience = claims.get("exp"), claims.get("nbf", 0), claims.get("aud")
        if not isinstance(exp, int | float) or not isinstance(nbf, int | float):
            raise _denied("exp is missing, or exp or nbf is not a number")
        if not now < exp <= now + _LONGEST_S or nbf > now:
            raise _denied("it is expired, not valid yet, or lives for more than a day")
        if claims.get("iss") != self.settings.issuer or claims.get("role") != self.settings.role:
            raise _denied("iss or role is another")
        if self.settings.audience not in (audience if isinstance(audience, list) else [audience]):
            raise _denied("aud is another")


def build_admin_token(key: Ed25519PrivateKey, settings: AdminSettings) -> str:
    """A token for the next 5 minutes."""
    from joserfc import jwt  # noqa: PLC0415
    from joserfc.jwk import OKPKey  # noqa: PLC0415

    now = int(time.time())
    claims: dict[str, Any] = {"iss": settings.issuer, "sub": "admin", "aud": [settings.audience], "role": settings.role}
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return jwt.encode(
        {"alg": "EdDSA", "typ": "JWT"},
        claims | {"iat": now, "exp": now + LIFETIME_S},
        OKPKey.import_key(pem),
        algorithms=_ALGORITHMS,
    )


def load_ed25519(pem: bytes) -> Ed25519PrivateKey:
    """Raises ConfigError `broker.key`."""
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise _unusable("not a PEM private key") from e
    if not isinstance(key, Ed25519PrivateKey):
        raise _unusable("not an Ed25519 key")
    return key


def load_ed25519_public(pem: bytes) -> Ed25519PublicKey:
    """Raises ConfigError `broker.key`."""
    try:
        key = load_pem_public_key(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise _unusable("not a PEM public key") from e
    if not isinstance(key, Ed25519PublicKey):
        raise _unusable("not an Ed25519 key")
    return key


def _unusable(detail: str) -> ConfigError:
    return ConfigError("broker.key", detail, hint="use the key that `antechamber broker init` made")
