"""TLS 1.3 that ends here: each connection makes the peer see the attested key."""

import os
import ssl

from antechamber.errors import PlatformUnfit
from antechamber.gateway.agent_link import Handover


def server_context(given: Handover) -> ssl.SSLContext:
    """Load key and chain without a file, and close the key's descriptor. Raises PlatformUnfit `gateway.key`.

    No resumption and no early data: both skip the certificate, whose key is what the quote binds.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0  # TLS 1.3 resumes by ticket only, and sends early data only with one
    context.set_alpn_protocols(["http/1.1"])
    chain = os.memfd_create("antechamber-certificate", os.MFD_CLOEXEC)
    try:
        os.write(chain, given.terms.certificate.encode())
        # OpenSSL wants paths: these name memory, and opening them again starts at offset 0.
        context.load_cert_chain(
            f"/proc/self/fd/{chain}", f"/proc/self/fd/{given.key_fd}", ""
        )  # "": never ask a terminal
    except (OSError, ValueError) as e:  # ssl.SSLError is an OSError
        reason = getattr(e, "reason", None) or type(e).__name__
        raise PlatformUnfit("gateway.key", f"key and certificate do not load: {reason}", hint="boot again") from e
    finally:
        os.close(chain)
        os.close(given.key_fd)
    return context
