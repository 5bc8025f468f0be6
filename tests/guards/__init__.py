"""The tests are tested: each guard that a threat names is disabled in turn, and its attack tests must then fail."""
