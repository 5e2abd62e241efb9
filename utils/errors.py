"""The error that is meant for the person at the keyboard."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: the message says what is wrong, where, with which value, and how to put it right.

    `main.py` prints the message on stderr and exits with status 2, without a traceback.
    """


def suggest(name: str, known: Iterable[str], *, what: str = "known") -> str:
    """Return "did you mean ...?" with the close names, or the list of all `known` ones; for the end of a message."""
    known = sorted(str(entry) for entry in known)
    by_lower = {entry.lower(): entry for entry in known}
    close = [by_lower[match] for match in difflib.get_close_matches(str(name).lower(), by_lower, n=3, cutoff=0.6)]
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"{what}: {', '.join(known) or 'none'}"
