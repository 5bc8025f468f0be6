"""The stages that take a fresh guest to a serving engine, in order."""
