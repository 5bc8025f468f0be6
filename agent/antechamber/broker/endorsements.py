"""Collateral that the broker keeps: files of a directory, read again when they change."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from antechamber import log
from antechamber.errors import AgentError, MalformedEvidence
from antechamber.evidence.collateral import MAX_SETS, Collateral, TdxCollateral, seal_collateral


class CollateralFiles:
    """`*.json` in dcap-qvl's shape. A file that does not parse is logged and left out: its platform is refused."""

    def __init__(self, directory: str, key: Ed25519PrivateKey) -> None:
        self._directory, self._key = Path(directory), key
        self._seen: tuple[tuple[str, int, int], ...] | None = None
        self._sets: tuple[TdxCollateral, ...] = ()

    def current(self, now: int) -> Collateral:
        """For the broker's own verification, at its own clock."""
        return Collateral(now, b"", self._load())

    def sealed(self, nonce: str, now: int) -> bytes:
        """The signed envelope over a nonce of 64 lower-case hex digits. Raises MalformedEvidence `collateral.nonce`."""
        if len(nonce) != 64 or set(nonce) - set("0123456789abcdef"):
            raise MalformedEvidence("collateral.nonce", "not 64 lower-case hex digits", hint="?nonce=<32 bytes of hex>")
        return seal_collateral(self._load(), time=now, nonce=bytes.fromhex(nonce), key=self._key)

    def _load(self) -> tuple[TdxCollateral, ...]:
        files = sorted(self._directory.glob("*.json"))
        seen = tuple((f.name, f.stat().st_mtime_ns, f.stat().st_size) for f in files)
        if seen != self._seen:
            self._sets, self._seen = self._parse(files), seen
        return self._sets

    @staticmethod
    def _parse(files: list[Path]) -> tuple[TdxCollateral, ...]:
        newest: dict[str, TdxCollateral] = {}
        for file in files:
            try:
                one = TdxCollateral.parse(file.read_bytes())
            except AgentError as e:
                log.failure(e)
                continue
            other = newest.get(one.fmspc)
            if other is None or _age(one) > _age(other):
                newest[one.fmspc] = one
        log.event("collateral.loaded", sets=len(newest), fmspc=" ".join(newest))
        return tuple(newest.values())[:MAX_SETS]


def _age(one: TdxCollateral) -> tuple[int, int]:
    return one.tcb_evaluation_data_number, one.issue_date
