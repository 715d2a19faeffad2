"""The record of how a model was cut: a value that fits in a file header and rebuilds the shapes in another process.

Shapes alone do not tell a structure (a 288-row qkv may have fewer heads or narrower ones), so the kept indices of every
cut dimension are written down, relative to the model as it was built, with the integers that modules keep (``out_channels``).
"""

from __future__ import annotations

import json
import operator
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from espalier.errors import EspalierError

VERSION = 1

Shape = tuple[int, ...]
Place = tuple[str, int]  # name of a parameter or buffer, and one of its dimensions


@dataclass(frozen=True)
class Structure:
    """How a model differs in shape from the one that its constructor builds. The empty one means "as built".

    Equal cuts give equal records: what is whole (all indices kept, an integer with its original value) is left out.

    Attributes:
        shapes: original shape of every parameter and buffer that was cut.
        kept: sorted original indices that are left, per cut dimension.
        integers: module integers that were rewritten, path -> (original, present) value; ``norm.normalized_shape[0]`` for
            one inside a tuple or list.
        scales: module floats that were rewritten (1 / sqrt of a head's width), path -> (original, present) value.

    Raises:
        EspalierError: if the indices are not sorted, distinct and inside the shapes.

    Example:
        >>> once = Structure().cut({("a.weight", 0): (0, 2, 3)}, {"a.weight": (4, 5)}, {"a.out_features": (4, 3)})
        >>> twice = once.cut({("a.weight", 0): (1, 2)}, {"a.weight": (3, 5)}, {"a.out_features": (3, 2)})
        >>> twice.kept, twice.shape("a.weight"), twice.integers
        ({('a.weight', 0): (2, 3)}, (2, 5), {'a.out_features': (4, 2)})
        >>> Structure.from_json(twice.to_json()) == twice
        True
    """

    shapes: Mapping[str, Shape] = field(default_factory=dict)
    kept: Mapping[Place, tuple[int, ...]] = field(default_factory=dict)
    integers: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes = {name: tuple(map(operator.index, shape)) for name, shape in self.shapes.items()}
        kept = {place: tuple(map(operator.index, indices)) for place, indices in self.kept.items()}
        for (name, dim), indices in kept.items():
            if name not in shapes:
                raise EspalierError(f"The structure record is malformed: it does not give the shape of {name}.")
            size = shapes[name][dim] if 0 <= dim < len(shapes[name]) else -1
            if not indices or list(indices) != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= size:
                raise EspalierError(f"The structure record keeps impossible indices of {name}, dimension {dim}.")
        kept = {(name, dim): indices for (name, dim), indices in kept.items() if len(indices) < shapes[name][dim]}
        cut = {name for name, _ in kept}
        object.__setattr__(self, "kept", kept)
        object.__setattr__(self, "shapes", {name: shape for name, shape in shapes.items() if name in cut})
        object.__setattr__(self, "integers", {path: (a, b) for path, (a, b) in self.integers.items() if a != b})
        object.__setattr__(self, "scales", {path: (a, b) for path, (a, b) in self.scales.items() if a != b})

    def __hash__(self) -> int:
        return hash(self.to_json())

    @property
    def is_dense(self) -> bool:
        """Whether nothing has been cut."""
        return not self.kept and not self.integers and not self.scales

    def shape(self, name: str) -> Shape:
        """Present shape of a tensor in ``shapes``."""
        return tuple(len(self.kept.get((name, dim), range(size))) for dim, size in enumerate(self.shapes[name]))

    def cut(
        self,
        keep: Mapping[Place, tuple[int, ...]],
        shapes: Mapping[str, Shape],
        integers: Mapping[str, tuple[int, int]],
        scales: Mapping[str, tuple[float, float]] | None = None,
    ) -> Structure:
        """The structure after a further cut.

        Args:
            keep: kept indices relative to the present shapes.
            shapes: present shapes of the tensors in ``keep``.
            integers: rewritten module integers, path -> (present, new) value.
            scales: rewritten module floats, path -> (present, new) value.
        """
        original = {**shapes, **self.shapes}
        kept = dict(self.kept)
        for (name, dim), indices in keep.items():
            before = kept.get((name, dim), range(original[name][dim]))
            kept[name, dim] = tuple(map(before.__getitem__, indices))
        values = {path: (self.integers.get(path, (now, now))[0], new) for path, (now, new) in integers.items()}
        floats = {path: (self.scales.get(path, (now, now))[0], new) for path, (now, new) in (scales or {}).items()}
        return Structure(original, kept, {**self.integers, **values}, {**self.scales, **floats})

    def to_json(self) -> str:
        """Compact JSON with sorted keys: equal structures give equal text."""
        kept: dict[str, dict[str, list[int]]] = {}
        for (name, dim), indices in self.kept.items():
            kept.setdefault(name, {})[str(dim)] = list(indices)
        content = {
            "version": VERSION,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "kept": kept,
            "integers": {path: list(values) for path, values in self.integers.items()},
        }
        if self.scales:
            content["scales"] = {path: list(values) for path, values in self.scales.items()}
        return json.dumps(content, separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Structure:
        """Read what ``to_json`` wrote.

        Raises:
            EspalierError: if the text is of another version, malformed, or names indices outside the shapes.
        """
        try:
            content = json.loads(text)
            if _whole(content["version"]) != VERSION:
                raise EspalierError(f"The structure record has version {content['version']}; this espalier reads {VERSION}.")
            return cls(
                {name: tuple(map(_whole, shape)) for name, shape in content["shapes"].items()},
                {
                    (name, _dimension(dim)): tuple(map(_whole, indices))
                    for name, dims in content["kept"].items()
                    for dim, indices in dims.items()
                },
                {path: (_whole(a), _whole(b)) for path, (a, b) in content["integers"].items()},
                {path: (_scale(a), _scale(b)) for path, (a, b) in content.get("scales", {}).items()},
            )
        except EspalierError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise EspalierError(f"The structure record is malformed ({type(error).__name__}: {error}).") from error


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise EspalierError(f"The structure record is malformed: {reprlib.repr(value)} is no index or size.")
    return value


def _scale(value: Any) -> float:
    if not isinstance(value, float) or not 0 < value < 1e9:
        raise EspalierError(f"The structure record is malformed: {reprlib.repr(value)} is no scale.")
    return value


def _dimension(text: str) -> int:
    """JSON keys are strings; only the plain spelling counts, so that no dimension can be named twice."""
    if text not in map(str, range(16)):
        raise EspalierError(f"The structure record is malformed: {reprlib.repr(text)} is no dimension.")
    return int(text)
