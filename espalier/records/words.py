"""What to say about a name that nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """Words for an error message: the closest known name, or all of them.

    Example:
        >>> nearest("epoch", ["epochs", "precision"])
        "did you mean 'epochs'?"
    """
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(names)}."
