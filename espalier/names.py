"""What to say about a name that nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from espalier.errors import EspalierError


def nearest(word: str, known: Iterable[str]) -> str:
    """Words for an error message: the closest known name, or all of them.

    Example:
        >>> nearest("epoch", ["epochs", "precision"])
        "did you mean 'epochs'?"
    """
    names = sorted(known)
    return _guess(word, names) or f"known are {', '.join(names)}."


def unknown(kind: str, name: str, known: Iterable[str], *, show_all: bool = True) -> EspalierError:
    """An error that names the nearest known name, and all of them where they are few.

    Example:
        >>> print(unknown("model", "resnet21", ["resnet20", "vgg16_bn"]))
        There is no model 'resnet21': did you mean 'resnet20'? Known are resnet20, vgg16_bn.
        >>> print(unknown("data set", "mnist", ["digits"]))
        There is no data set 'mnist': known are digits.
    """
    names = sorted(known)
    hint = _guess(name, names)
    listing = f"{'Known' if hint else 'known'} are {', '.join(names)}." if show_all else ""
    said = " ".join(filter(None, (hint, listing)))
    return EspalierError(f"There is no {kind} {name!r}" + (f": {said}" if said else "."))


def _guess(word: str, names: list[str]) -> str:
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {close[0]!r}?" if close else ""
