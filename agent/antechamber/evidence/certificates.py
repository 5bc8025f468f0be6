"""What an X.509 certificate, or a request for one, may do to its reader."""

import functools

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

# All that pyca raises for a certificate, or a field of one, that it cannot read: fields are parsed when first read, and
# a BIT STRING in a name, for one, is a TypeError. A signature that does not hold is InvalidSignature, and not here.
CERTIFICATE_ERRORS = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)

MAX_LINKS = 4096  # two for each GPU, one for each platform, and those that they share


@functools.lru_cache(MAX_LINKS)
def verify_issued(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    """`certificate` names `issuer`, and is signed by its key.

    What held is remembered, for exactly these two certificates: no time, anchor or revocation changes that a signature
    verifies, so the memory needs no end but its size. Whether either is valid at a time, may issue, leads to an anchor
    or is revoked is for the caller to ask, each time. A refusal is never remembered.

    Raises InvalidSignature, and CERTIFICATE_ERRORS.
    """
    certificate.verify_directly_issued_by(issuer)
