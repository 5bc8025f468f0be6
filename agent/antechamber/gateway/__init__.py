"""TLS in, engine socket out, Evidence on the way."""
