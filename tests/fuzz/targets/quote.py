"""TDX quotes, versions 4 and 5: parse, the rules for a production TD, verification against collateral."""

import struct

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from fuzz.contract import NOW, VECTORS, Target
from fuzz.mutation import Mutator, pem_blocks, to_pem

from antechamber.errors import AppraisalRefused
from antechamber.evidence.anchors import NVIDIA_ROOT_SPKI, Anchors
from antechamber.evidence.chain import fmspc_of, verify_quote
from antechamber.evidence.collateral import TdxCollateral
from antechamber.evidence.tdx import Quote, TdBody, require_production
from antechamber.simulator.intel import IntelPki, td_body

PKI = IntelPki(NOW, seed=bytes(32))
ANCHORS = Anchors(PKI.root_der, NVIDIA_ROOT_SPKI)
COLLATERAL = TdxCollateral.build(PKI.collateral())


def run(data: bytes) -> None:
    quote = Quote.parse(data)
    assert data.startswith(quote.raw), "raw is not the quote's own bytes"
    assert not data[len(quote.raw) :].strip(b"\0"), "bytes were dropped"
    assert Quote.parse(quote.raw) == quote == Quote.parse(quote.raw + bytes(5)), "its own bytes parse otherwise"
    assert written(quote.body) in quote.signed, "a field is not where it was read"
    try:
        require_production(quote.body)
    except AppraisalRefused as refused:
        assert refused.code.startswith("tdx.")
    fmspc_of(quote)
    verify_quote(quote, COLLATERAL, ANCHORS, NOW)
    require_signed(quote)


def written(body: TdBody) -> bytes:
    """The body's bytes from its fields: nothing is lost or read twice."""
    out = b"".join((
        body.tee_tcb_svn, body.mr_seam, body.mrsigner_seam, body.seam_attributes, body.td_attributes, body.xfam,
        body.mr_td, body.mr_config_id, body.mr_owner, body.mr_owner_config, *body.rtmr, body.report_data,
        body.tee_tcb_svn2 or b"", body.mr_servicetd or b"",
    ))  # fmt: skip
    if (more := body.extension) is not None:
        out += struct.pack("<B", more.vm_id) + b"".join((
            more.td_id, more.dev_info, more.init_servicetd_hash, more.init_servicetd_attributes, more.init_cpu_svn,
            more.init_tee_tcb_svn, more.init_tee_fmspc, more.cur_servicetd_hash, more.cur_servicetd_attributes,
        ))  # fmt: skip
    return out


def require_signed(quote: Quote) -> None:
    """What verifies is signed by the attestation key: asked of another library."""
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\4" + quote.attestation_key)
    r, s = (int.from_bytes(half, "big") for half in (quote.signature[:32], quote.signature[32:]))
    try:
        key.verify(encode_dss_signature(r, s), quote.signed, ec.ECDSA(SHA256()))
    except InvalidSignature:
        raise AssertionError("a quote verifies whose signature does not") from None


def seeds() -> list[bytes]:
    body = td_body(report_data=bytes(range(64)))
    quotes = [PKI.quote_v4(body), *(PKI.quote_v5(body, kind) for kind in (2, 3, 4))]
    return [*quotes, quotes[0] + bytes(64), PKI.quote_v4(td_body(td_attributes=(1 | 1 << 28).to_bytes(8, "little")))]


def vectors() -> list[bytes]:
    return [path.read_bytes() for path in sorted((VECTORS / "tdx" / "quotes").glob("*.bin"))]


def mutate(m: Mutator, data: bytes) -> bytes:
    quote = Quote.parse(data)
    match m.random.randrange(4):
        case 0:  # another TD, well signed
            body = m.same_size(written(quote.body)[:584])
            return (
                PKI.quote_v4(body)
                if m.often()
                else PKI.quote_v5(body, m.random.choice((2, 3, 4)), mr_servicetd=m.same_size(bytes(48)))
            )
        case 1:  # another PCK chain
            return with_chain(quote, to_pem(chain(m, pem_blocks(quote.pck_chain))) + b"\0" * m.random.randrange(3))
        case 2:
            return with_chain(quote, m.bytes(quote.pck_chain))
        case _:  # one field of the certification data, sizes right
            parts = [quote.signature, quote.attestation_key, quote.qe_report, quote.qe_signature, quote.qe_auth]
            at = m.random.randrange(len(parts))
            parts[at] = m.same_size(parts[at]) if m.often(0.8) else m.bytes(parts[at])
            return assembled(quote.signed, *parts, quote.pck_chain)


def chain(m: Mutator, blocks: list[bytes]) -> list[bytes]:
    """One certificate changed and signed again by its issuer; or one moved, missing or doubled."""
    at = m.random.randrange(len(blocks))
    if m.often(0.15):
        return [*blocks[:at], *([blocks[at]] * m.random.choice((0, 2))), *blocks[at + 1 :]]
    key = (PKI._pck_ca.key, PKI._root.key, PKI._root.key)[min(at, 2)]
    return [*blocks[:at], m.certificate(blocks[at], key, SHA256()), *blocks[at + 1 :]]


def with_chain(quote: Quote, pem: bytes) -> bytes:
    parts = quote.signature, quote.attestation_key, quote.qe_report, quote.qe_signature, quote.qe_auth
    return assembled(quote.signed, *parts, pem)


def assembled(
    signed: bytes, signature: bytes, key: bytes, report: bytes, report_signature: bytes, auth: bytes, pem: bytes
) -> bytes:
    certified = report + report_signature + struct.pack("<H", len(auth)) + auth + struct.pack("<HI", 5, len(pem)) + pem
    data = signature + key + struct.pack("<HI", 6, len(certified)) + certified
    return signed + struct.pack("<I", len(data)) + data


TARGET = Target(name="quote", run=run, seeds=seeds, mutate=mutate, max_len=1 << 14, vectors=vectors)
