"""Real evidence for tests: read where it lies beside the checkout, never copied."""

from pathlib import Path

import pytest

VECTORS = Path(__file__).resolve().parents[2] / "shared" / "vectors"
needs_vectors = pytest.mark.skipif(
    not VECTORS.is_dir(), reason="no real evidence: put shared/vectors beside the checkout"
)
