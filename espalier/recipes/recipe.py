"""Read a recipe: YAML and `key=value` overrides -> a checked `Recipe`, or one sentence that says what is wrong."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from espalier.errors import EspalierError
from espalier.names import nearest
from espalier.recipes.spec import SHORTHAND, Recipe, expand_shorthand

_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
# Keys that do not change what is learned: two recipes that differ only here are one experiment.
_NOT_HASHED = {
    "name": True,
    "trackers": True,
    "train": {"threads", "device", "checkpoint_every", "check_every", "keep_best", "latency"},
    "data": {"download", "workers"},
}


# Keys that came later: as long as they say nothing, a recipe is the experiment that it was before.
_HASHED_IF_GIVEN = {"lr_schedule": ("restart_at", "restart_scale"), "data": ("crop_pct", "mean", "std")}


class _Loader(yaml.SafeLoader):
    """Plain YAML, except that `2:4` is a text (YAML 1.1 takes it for 124, in base 60) and a repeated key is refused."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.MarkedYAMLError(None, None, f"the key {key.value!r} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, re.compile(r"(?!.*:\d)" + known.pattern, known.flags) if tag in _NUMBERS else known) for tag, known in rules]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe and apply overrides such as `train.epochs=3`.

    Args:
        path: the YAML file. Its stem names the recipe unless the file has a `name`.
        overrides: `dotted.key=value` strings; values are read as YAML.

    Raises:
        EspalierError: the file cannot be read, a key is unknown, or a value has the wrong type.
    """
    path = Path(path)
    raw = read_yaml(path, "recipe", "'model' and 'data'", "`espalier list recipes` names some.")
    raw.setdefault("name", path.stem)
    return parse_recipe(raw, overrides)


def read_yaml(path: Path, what: str, keys: str, hint: str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Args:
        path: the file.
        what: what it is, for error messages.
        keys: some that it may have.
        hint: what to do if there is no such file.

    Raises:
        EspalierError: it cannot be read, is not valid YAML, or holds something else.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise EspalierError(f"There is no {what} {str(path)!r}: {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise EspalierError(f"The {what} {str(path)!r} cannot be read ({error}).") from None
    except yaml.YAMLError as error:
        raise EspalierError(f"The {what} {str(path)!r} is not valid YAML ({_where(error)}).") from None
    if not isinstance(raw, dict):
        raise EspalierError(f"The {what} {str(path)!r} must be a mapping with keys such as {keys}.")
    return raw


def parse_recipe(raw: dict[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Check a recipe given as a plain dictionary.

    Example:
        >>> parse_recipe({"model": "convnet4", "data": "digits"}, ["train.epochs=3"]).train.epochs
        3
    """
    merged = apply_overrides(expand_shorthand(raw), overrides)
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        raise EspalierError(_sentence(error)) from None


def apply_overrides(raw: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return a copy of `raw` with `dotted.key=value` strings applied."""
    return apply_settings(raw, [split_override(override) for override in overrides])


def apply_settings(raw: dict[str, Any], settings: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return a copy of `raw` with values set by their dotted keys, one after the other.

    A mapping replaces the whole section; a name alone keeps the section's other keys, except for a model's arguments;
    "dense" keeps none.

    Example:
        >>> apply_settings({"train": {"epochs": 10}}, [("train.epochs", 3), ("pruning", {"method": "dense"})])
        {'train': {'epochs': 3}, 'pruning': {'method': 'dense'}}
    """
    result: dict[str, Any] = json.loads(json.dumps(raw, default=str))
    for key, value in settings:
        *parents, last = key.strip().split(".")
        node = result
        for depth, parent in enumerate(parents):
            child = node.get(parent)
            if child is None:
                child = node[parent] = {}
            if not isinstance(child, dict):
                at = ".".join(parents[: depth + 1])
                raise EspalierError(f"The override '{key}={value}' does not fit: {at!r} is a value, not a section.")
            node = child
        if not parents and last in SHORTHAND and isinstance(value, str):
            # Only the section's own name: the other keys stay, except for a model's arguments, which are its own.
            others = node.get(last) if last != "model" and value != "dense" else None
            value = {**(others or {}), SHORTHAND[last]: value}
        node[last] = value
    return result


def split_override(override: str) -> tuple[str, Any]:
    """Key and value of `dotted.key=value`, the value read as YAML.

    Example:
        >>> split_override("train.epochs=3")
        ('train.epochs', 3)
    """
    key, sign, text = override.partition("=")
    if not sign or not key.strip():
        raise EspalierError(f"The override {override!r} must have the form key=value, such as train.epochs=5.")
    try:
        return key, yaml.load(text, _Loader) if text else None
    except yaml.YAMLError:
        return key, text


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON types with every default written out."""
    return recipe.model_dump(mode="json")


def recipe_hash(recipe: Recipe) -> str:
    """Sixteen hexadecimal digits that name the experiment, whatever it is called and wherever it runs."""
    plain = recipe.model_dump(mode="json", exclude=_NOT_HASHED)  # type: ignore[arg-type]
    for section, keys in _HASHED_IF_GIVEN.items():
        for key in keys:
            if plain[section][key] is None:
                del plain[section][key]
    if plain["pruning"].get("digest"):  # masks that are named by their content may lie anywhere
        plain["pruning"].pop("masks", None)
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def tells_apart(key: str) -> bool:
    """Whether runs whose recipes differ only in this dotted key have folders of their own.

    Example:
        >>> tells_apart("train.epochs"), tells_apart("train.threads"), tells_apart("train.checkpoint_every.epochs")
        (True, False, False)
    """
    section, _, rest = key.partition(".")
    known = _NOT_HASHED.get(section)
    if section == "name" or not known:  # the name is in the folder's
        return True
    return isinstance(known, set) and rest.partition(".")[0] not in known


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML text that `load_recipe` reads back to an equal recipe."""
    return yaml.safe_dump(resolved(recipe), sort_keys=False)


_TYPES = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("model_type", "dict_type"), "a section with keys of its own"),
    "tuple_type": "a list such as [a, b]",
    "string_type": "a text",
}


def _where(error: yaml.YAMLError) -> str:
    """Place and kind of a mistake in a YAML file, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())


def _sentence(error: ValidationError) -> str:
    """The first problem of a pydantic error in our own words."""
    problems = error.errors()
    problem = min(problems, key=lambda p: p["type"] != "extra_forbidden")  # a misspelt key explains a missing one
    place = [str(part) for part in problem["loc"]]
    where = ".".join(place)
    if problem["type"] == "extra_forbidden":
        parent = ".".join(place[:-1])
        section = f" in section {parent!r}" if parent else ""
        return f"The recipe has an unknown key {place[-1]!r}{section}: {nearest(place[-1], _fields(place[:-1]))}"
    if problem["type"] == "missing":
        return f"The recipe lacks the key {where!r}."
    said = _TYPES.get(problem["type"]) or problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if problem["loc"] == ("pruning", "sparsity"):
        said += " (a share: 0.9 for 90 %)"
    return f"The recipe's {where!r} should be {said}, but is {problem['input']!r}."


def _fields(place: Sequence[str]) -> list[str]:
    """Keys known in the section at `place`."""
    section: type[BaseModel] = Recipe
    for part in place:
        inner = section.model_fields[part].annotation if part in section.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        section = inner
    return list(section.model_fields)
