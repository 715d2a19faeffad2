"""The record of how a model was built, as it stands in a file: names and plain values, never code, weights or places.

A file may come from anywhere, so what it can ask for is small: a constructor that a library lists by name, and arguments
that are numbers, booleans, short words or lists of numbers. Whatever could make a constructor fetch or read something
(``pretrained``, ``weights``, ``checkpoint_path``, names of hubs and folders) is refused, when writing and when reading.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from espalier.errors import EspalierError

LIBRARIES = ("espalier", "timm", "torchvision")
NAME = re.compile(r"[A-Za-z0-9_]{1,100}")  # an architecture: no tag of weights, no hub, no folder
WORD = re.compile(r"[A-Za-z0-9_+ -]{0,64}")  # a string argument: too little for a path with a suffix, a folder or an address
ARGUMENT = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
LOADING = ("pretrained", "checkpoint", "cache", "state_dict", "backbone_name")  # anywhere in the name of an argument
PLACES = {"file", "url", "uri", "path", "dir", "folder", "hub", "repo", "source", "weights", "weight", "module", "fn", "func"}
HARMLESS = {"init_weights", "weight_init"}  # of torchvision and timm, and everything about drop_path
LARGEST, LONGEST = 1_000_000, 64


@dataclass(frozen=True)
class Builder:
    """Which constructor built a model, and with which arguments.

    Attributes:
        library: "espalier", "timm" or "torchvision".
        name: the model's name there, exactly as the library lists it.
        arguments: keyword arguments: numbers, booleans, None, short words, lists of numbers.

    Raises:
        EspalierError: something in it could be more than a name with plain values.

    Example:
        >>> builder = Builder("timm", "resnet18", {"num_classes": 10})
        >>> Builder.read(builder.content()) == builder, str(builder)
        (True, 'timm/resnet18')
        >>> Builder("timm", "resnet18", {"checkpoint_path": "x"})
        Traceback (most recent call last):
        espalier.errors.EspalierError: A recorded builder may not have the argument 'checkpoint_path': ...
    """

    library: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.library not in LIBRARIES:
            raise EspalierError(f"A builder's library is one of {', '.join(LIBRARIES)}; got {_short(self.library)}.")
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise EspalierError(
                f"A builder's name is that of an architecture (letters, digits and underscores, no tag, hub or folder); "
                f"got {_short(self.name)}."
            )
        if not isinstance(self.arguments, Mapping):
            raise EspalierError(f"A builder's arguments are a mapping from names to values; got {_short(self.arguments)}.")
        for name, value in self.arguments.items():
            _check_argument(name, value)
        plain = {name: _as_json(value) for name, value in self.arguments.items()}
        object.__setattr__(self, "arguments", plain)

    def __hash__(self) -> int:
        return hash((self.library, self.name))

    def __str__(self) -> str:
        return f"{self.library}/{self.name}"

    def content(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"library": self.library, "name": self.name, "arguments": dict(self.arguments)}

    @classmethod
    def read(cls, content: Any) -> Builder:
        """From ``{"library": ..., "name": ..., "arguments": {...}}``, where the arguments may be left out.

        Raises:
            EspalierError: if it is anything else.
        """
        if isinstance(content, Builder):
            return content
        keys = {"library", "name", "arguments"}
        if not isinstance(content, Mapping) or not {"library", "name"} <= content.keys() <= keys:
            raise EspalierError(
                'A builder has the form {"library": "timm", "name": "resnet18", "arguments": {...}}; '
                f"got {_short(content)}."
            )
        return cls(content["library"], content["name"], content.get("arguments", {}))


def _check_argument(name: Any, value: Any) -> None:
    if not isinstance(name, str) or not ARGUMENT.fullmatch(name):
        raise EspalierError(f"A recorded builder has the argument {_short(name)}, which is no name.")
    words = set(name.lower().replace("drop_path", "").split("_"))
    if name not in HARMLESS and (words & PLACES or any(part in name.lower() for part in LOADING)):
        raise EspalierError(
            f"A recorded builder may not have the argument {name!r}: it could load weights or code; leave it out."
        )
    if not _is_plain(value) and not (
        isinstance(value, list | tuple) and len(value) <= LONGEST and all(_is_number(item) for item in value)
    ):
        raise EspalierError(
            f"The argument {name!r} of a recorded builder is {_short(value)}; allowed are numbers up to {LARGEST:,}, booleans, "
            f"None, words without dots, slashes and colons, and lists of up to {LONGEST} numbers."
        )


def _is_plain(value: Any) -> bool:
    return value is None or _is_number(value) or (isinstance(value, str) and WORD.fullmatch(value) is not None)


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float) and abs(value) <= LARGEST  # which nan is not


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _short(value: Any) -> str:
    return reprlib.repr(value)
