"""Find a recipe by path or by the name of a ready one."""

from __future__ import annotations

import difflib
from pathlib import Path

from espalier.errors import EspalierError

READY = Path(__file__).resolve().parents[2] / "recipes"
INSTALLED = Path(__file__).resolve().parents[1] / "ready_recipes"


def ready_recipes() -> dict[str, Path]:
    """Names and files of the recipes that come with Espalier."""
    folder = INSTALLED if INSTALLED.is_dir() else READY
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(text: str) -> Path:
    """A path that exists, or the file of a ready recipe.

    Raises:
        EspalierError: neither; the nearest ready name is given.
    """
    path = Path(text)
    if path.is_file():
        return path
    ready = ready_recipes()
    if path.name.removesuffix(".yaml") in ready and not path.exists():
        return ready[path.name.removesuffix(".yaml")]
    close = difflib.get_close_matches(path.stem, ready, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "`espalier list recipes` names the ready ones."
    raise EspalierError(f"There is no recipe {text!r}: {hint}")
