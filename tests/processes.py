"""Processes by their command line, without the tools that a plain container lacks."""

import psutil


def with_words(*words: str) -> list[int]:
    """Pids whose command line holds all of these."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if all(word in line for word in words):
            found.append(process.pid)
    return found
