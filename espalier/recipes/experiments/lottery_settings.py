"""What a lottery draws: rounds, densities, the moment that is rewound to, controls and finders."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import espalier as es
from espalier.errors import EspalierError
from espalier.recipes.pruning import for_method, takes_sparsity
from espalier.recipes.recipe import recipe_hash
from espalier.recipes.spec import PruningSpec, Recipe
from espalier.recipes.training.rewinding import read_moment

RANDOM_INIT, RANDOM_MASKS = "random-init", "random-masks"
CONTROLS = (RANDOM_INIT, RANDOM_MASKS)
TICKET = "ticket"


@dataclass(frozen=True)
class Settings:
    """What is drawn.

    Args:
        recipe: of every training; of its pruning section `include` and `exclude` say which weights are masked.
        rounds: rounds of pruning after the dense training.
        fraction: share of the remaining weights that a round removes; their number is rounded up.
        densities: shares that stay after each round, in place of `rounds` and `fraction`.
        rewind: the moment that survivors go back to: steps, or epochs as in "1ep".
        keep_weights: learning-rate rewinding: weights stay as trained, only the rate and the data go back to that moment.
        controls: of `CONTROLS`.
        finders: methods of masks whose tickets are trained, too, each at the sparsity of the recipe or of the last round.
        siblings: also train every round with the data in another order, and look along the line between both.
    """

    recipe: Recipe
    rounds: int = 5
    fraction: float = 0.2
    densities: tuple[float, ...] = ()
    rewind: str = "0"
    keep_weights: bool = False
    controls: tuple[str, ...] = CONTROLS
    finders: tuple[str, ...] = ()
    siblings: bool = False

    def __post_init__(self) -> None:
        read_moment(self.rewind)
        falling = all(a > b for a, b in zip((1.0, *self.densities), self.densities, strict=False))
        if not falling or any(not 0 < share < 1 for share in self.densities):
            raise EspalierError("densities are shares between 0 and 1, each below the one before, such as 0.8,0.5,0.2.")
        if self.rounds < 1 or not 0 < self.fraction < 1:
            raise EspalierError("rounds is at least 1, and fraction a share between 0 and 1.")
        for name in self.controls:
            if name not in CONTROLS:
                raise EspalierError(f"The control {name!r} is unknown: known are {', '.join(CONTROLS)}.")
        for name in self.finders:
            if name not in es.METHODS or not takes_sparsity(name) or name in (TICKET, "follow"):
                raise EspalierError(f"{name!r} finds no tickets: name methods of masks such as ocp, agp, one-shot.")

    @property
    def last(self) -> int:
        """Number of the last round."""
        return len(self.densities) or self.rounds

    @property
    def sparsity(self) -> float:
        """What finders prune to: the recipe's sparsity, or that of the last round."""
        if self.recipe.pruning.sparsity is not None:
            return self.recipe.pruning.sparsity
        density = self.densities[-1] if self.densities else (1 - self.fraction) ** self.rounds
        return float(round(1 - density, 6))

    @property
    def folder_name(self) -> str:
        """The folder of the drawing: seeds, controls, finders and siblings add to it, everything else makes another."""
        kept = [recipe_hash(dense(self.recipe, 0)), self.fraction, self.densities, self.rewind, self.keep_weights]
        digest = hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:8]
        return f"lottery-{self.recipe.name or self.recipe.model.name}-{digest}"


def dense(recipe: Recipe, seed: int) -> Recipe:
    """The recipe of the dense training of a seed."""
    pruning = for_method(_only_where(recipe.pruning), "dense")
    return recipe.model_copy(update={"pruning": pruning, "seed": seed})


def _only_where(spec: PruningSpec) -> PruningSpec:
    """Which weights are masked, and nothing else."""
    args = {key: value for key, value in spec.args.items() if key in ("include", "exclude")}
    return PruningSpec(method="dense", **args)
