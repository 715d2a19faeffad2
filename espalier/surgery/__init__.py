"""Surgery: the only place where a parameter changes shape."""

from espalier.surgery.cutting import cut, replace, shape_to, structure_of, target_shapes
from espalier.surgery.wrapped import FollowsCuts, changes_made, last_change

__all__ = ["FollowsCuts", "changes_made", "cut", "last_change", "replace", "shape_to", "structure_of", "target_shapes"]
