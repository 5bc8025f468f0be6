"""A TD, its GPUs and their vendors' PKI in software. Never in a production image."""
