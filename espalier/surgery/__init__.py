"""Surgery: the only place where a parameter changes shape."""

from espalier.surgery.cutting import cut, replace, shape_to, structure_of, target_shapes

__all__ = ["cut", "replace", "shape_to", "structure_of", "target_shapes"]
