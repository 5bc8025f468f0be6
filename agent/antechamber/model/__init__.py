"""The sealed model: format, packing, unlocking."""
