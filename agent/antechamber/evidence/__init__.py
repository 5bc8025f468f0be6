"""Parse, verify and appraise Evidence. Pure: bytes, time and nonce in; values or refusals out."""
