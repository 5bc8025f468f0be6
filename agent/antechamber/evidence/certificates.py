"""What an X.509 certificate may do to its reader."""

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
