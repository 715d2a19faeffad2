"""Lottery tickets from a recipe: rounds of training, pruning and rewinding, with controls; every training is an ordinary run.

A folder has one folder for every seed, and in it

- `start.safetensors`: the weights at the moment that is rewound to;
- `round-00`, `round-01`, ...: run folders of the dense network and of the tickets;
- `masks-01.safetensors`, ...: the masks of every round, found in the round before;
- `random-init-01`, `random-masks-01`, ...: the controls, `sibling-00`, ... and `line-00.json`, ...: instability;
- `found-ocp-0.9`, `masks-ocp-0.9.safetensors`, `ticket-ocp-0.9`: a ticket found under another schedule, and its training.

The One-Cycle authors' protocol (three steps to 50 % with a constant rate, five epochs each, back to epoch 0 or 1) is
`densities=(5 / 6, 4 / 6, 0.5)`, `rewind="0"` or `"1ep"`, `train.epochs=5`, `lr_schedule=constant`; as in the code of the
rewinding paper a rewound round lasts until the recipe's last epoch, so one from epoch 1 has four.

What is finished is skipped, and a training that was stopped goes on, when the same command is given again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

import espalier as es
from espalier import lottery
from espalier.errors import EspalierError
from espalier.recipes.experiments.carrying import Outcome, Place, PlannedRun, carry_out
from espalier.recipes.experiments.lottery_settings import RANDOM_MASKS, TICKET, Settings, dense
from espalier.recipes.pruning import for_method
from espalier.recipes.spec import PruningSpec, Recipe
from espalier.recipes.training import runs
from espalier.recipes.training.engine import Interrupted
from espalier.recipes.training.evaluate import evaluate
from espalier.recipes.training.processes import processes
from espalier.recipes.training.rewinding import ANOTHER_SEED, keep_fresh_start, keep_start, plant, read_start
from espalier.recipes.training.setup import build_recipe_model, open_recipe_data


class Draw:
    """The lottery of one seed. Each method that returns runs has prepared their folders."""

    def __init__(self, settings: Settings, seed: int, folder: Path) -> None:
        self.settings, self.seed, self.folder = settings, seed, folder
        self.dense = dense(settings.recipe, seed)
        self.start = folder / "start.safetensors"

    def run(self, number: int) -> PlannedRun:
        """The dense training, or that of a ticket."""
        recipe = self.dense if number == 0 else self._ticket(self.masks(number), "found")
        return self._planned(recipe, f"round-{number:02}", f"round {number}")

    def masks(self, number: int | str) -> Path:
        """File of the masks of a round, or of a finder's."""
        return self.folder / f"masks-{self._tag(number) if isinstance(number, str) else f'{number:02}'}.safetensors"

    def stage(self, number: int) -> list[PlannedRun]:
        """All runs of a round; those of the round before are finished, and masks are found in them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        main = self.run(0) if number == 0 else None
        if main is not None:
            keep_start(main.recipe, main.folder, self.settings.rewind, self.start)
            planned = [main, *(self.finder(name) for name in self.settings.finders)]
        else:
            self._find(number)
            main = self.run(number)
            self._plant(main, number)
            planned = [main, *(self._control(kind, number) for kind in self.settings.controls)]
        if self.settings.siblings:
            planned.append(self._sibling(number))
        return planned

    def finder(self, name: str) -> PlannedRun:
        """A training whose final masks are a ticket."""
        pruning = for_method(self.settings.recipe.pruning, name, self.settings.sparsity)
        recipe = self.dense.model_copy(update={"pruning": pruning})
        return self._planned(recipe, f"found-{self._tag(name)}", f"{name} finds a ticket")

    def found(self, name: str) -> PlannedRun:
        """The training of a finder's ticket, from the moment that is rewound to."""
        run, file = self.finder(name), self.masks(name)
        if not file.exists():
            _, weights = self._trained(run)
            lottery.save_masks(lottery.masks_of_zeros(weights), file)
        made = self._planned(self._ticket(file, f"found by {name}"), self.ticket_folder(name).name, f"ticket of {name}")
        plant(made.recipe, made.folder, self.start)
        return made

    def ticket_folder(self, name: str) -> Path:
        """Where the ticket of a finder is trained."""
        return self.folder / f"ticket-{self._tag(name)}"

    def line(self, number: int) -> dict[str, Any]:
        """Loss and accuracy between a round and its sibling on the test split; kept in `line-NN.json`."""
        kept = self.folder / f"line-{number:02}.json"
        if kept.exists():
            read: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
            return read
        run, other = self.run(number), self.folder / f"sibling-{number:02}"
        with processes(run.recipe.train.device) as procs:
            data = open_recipe_data(run.recipe, procs)
            models = [
                es.load(folder / runs.WEIGHTS, build_recipe_model(run.recipe, data)).to(procs.device)
                for folder in (run.folder, other)
            ]
            states = [model.state_dict() for model in models]
            points = lottery.interpolate(
                build_recipe_model(run.recipe, data).to(procs.device),
                states[0],
                states[1],
                lambda model: evaluate(model, data.test.epoch(0), procs),
            )
        content = {
            "instability": lottery.instability(points),
            "points": [{"at": point.at, "test_loss": point.loss, "test_acc": point.accuracy} for point in points],
        }
        runs.write_json(kept, content)
        return content

    # -- parts of a stage ------------------------------------------------------------------------------------------

    def _find(self, number: int) -> None:
        """Masks of a round, from the training of the round before."""
        file = self.masks(number)
        if file.exists():
            return
        before = lottery.load_masks(self.masks(number - 1)) if number > 1 else None
        _, weights = self._trained(self.run(number - 1))
        keep = None
        if self.settings.densities:
            keep = round(self.settings.densities[number - 1] * sum(weight.numel() for weight in weights.values()))
        lottery.save_masks(lottery.next_masks(weights, before, fraction=self.settings.fraction, keep=keep), file)

    def _plant(self, run: PlannedRun, number: int) -> None:
        if self.settings.keep_weights:
            plant(run.recipe, run.folder, self.run(number - 1).folder / runs.WEIGHTS, read_start(self.start))
        else:
            plant(run.recipe, run.folder, self.start)

    def _control(self, kind: str, number: int) -> PlannedRun:
        folder, words = f"{kind}-{number:02}", f"{kind.replace('-', ' ')} {number}"
        if kind == RANDOM_MASKS:
            file = self.folder / f"random-masks-{number:02}.safetensors"
            if not file.exists():
                lottery.save_masks(lottery.random_masks(lottery.load_masks(self.masks(number)), self.seed), file)
            run, start = self._planned(self._ticket(file, kind), folder, words), self.start
        else:
            run, start = self._planned(self._ticket(self.masks(number), kind), folder, words), self.folder / "fresh.safetensors"
            keep_fresh_start(self.dense, start)
        plant(run.recipe, run.folder, start)
        return run

    def _sibling(self, number: int) -> PlannedRun:
        """The same start and masks; the seed of data and dropout is another."""
        recipe = self.dense if number == 0 else self._ticket(self.masks(number), "sibling")
        recipe = recipe.model_copy(update={"seed": self.seed + ANOTHER_SEED})
        made = self._planned(recipe, f"sibling-{number:02}", f"sibling of round {number}")
        if number == 0:
            plant(made.recipe, made.folder, self.start)
        else:
            self._plant(made, number)
        return made

    def _ticket(self, masks: Path, kind: str) -> Recipe:
        found = es.Ticket(masks)
        about = {"sparsity": round(found.share, 6), "masks": str(masks), "kind": kind, "digest": found.digest}
        pruning = PruningSpec(method=TICKET, **about)  # type: ignore[arg-type]
        return self.dense.model_copy(update={"pruning": pruning})

    def _planned(self, recipe: Recipe, folder: str, words: str) -> PlannedRun:
        return PlannedRun(recipe, self.folder / folder, f"{words}, seed {self.seed}")

    def _trained(self, run: PlannedRun) -> tuple[nn.Module, dict[str, nn.Parameter]]:
        """The model of a finished run, and the weights in it that may be masked."""
        with processes(run.recipe.train.device) as procs:
            model = build_recipe_model(run.recipe, open_recipe_data(run.recipe, procs))
        es.load(run.folder / runs.WEIGHTS, model)
        args = self.settings.recipe.pruning.args
        return model, lottery.weights_of(model, args.get("include"), args.get("exclude", ()))

    def _tag(self, finder: str) -> str:
        return f"{finder}-{self.settings.sparsity:g}"


def draw(
    settings: Settings,
    seeds: Sequence[int],
    out: Path,
    place: Place,
    tell: Callable[[str], None] = lambda line: None,
    tick: Callable[[Sequence[PlannedRun]], None] = lambda running: None,
) -> Iterator[Outcome]:
    """Carry the lottery out, round by round with all seeds side by side; a seed whose round fails goes no further.

    Args:
        settings: what is drawn.
        seeds: of initialisation and data.
        out: where the folder `settings.folder_name` goes.
        place: where trainings run, such as `LocalProcesses(jobs=2)`.
        tell, tick: see `carry_out`.

    Raises:
        EspalierError: settings that don't fit the model or the data, or a seed that another process is drawing; what fails in a
            training is an outcome.
    """
    draws = draws_of(settings, seeds, out)
    with ExitStack() as held:
        for one in draws:  # two that prepare one round would overwrite each other's masks
            one.folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(runs.locked(one.folder))
        yield from _rounds(settings, draws, place, tell, tick)


def _rounds(
    settings: Settings,
    draws: list[Draw],
    place: Place,
    tell: Callable[[str], None],
    tick: Callable[[Sequence[PlannedRun]], None],
) -> Iterator[Outcome]:
    for number in range(settings.last + 1):
        stages, broken = _stages(draws, number)
        yield from broken
        planned = {run.folder: (one, run) for one, stage in stages for run in stage}
        for outcome in carry_out([run for _, run in planned.values()], place, tell, tick):
            yield outcome
            one = planned[outcome.run.folder][0]
            if outcome.state == "failed" and outcome.run.folder == one.run(number).folder:
                draws.remove(one)
        if settings.siblings:
            for one in draws:
                if all((one.folder / f"{kind}-{number:02}" / runs.RESULT).exists() for kind in ("round", "sibling")):
                    one.line(number)
    for name in settings.finders:
        ready = [one for one in draws if runs.read_result(one.finder(name).folder) is not None]
        yield from carry_out([one.found(name) for one in ready], place, tell, tick)


def _stages(draws: list[Draw], number: int) -> tuple[list[tuple[Draw, list[PlannedRun]]], list[Outcome]]:
    """The runs of a round for every seed, and failures of seeds whose round cannot be prepared; those leave `draws`.

    Raises:
        EspalierError: none can be, for the last one's reason.
    """
    stages, broken = [], []
    for one in list(draws):
        try:
            stages.append((one, one.stage(number)))
        except Interrupted:
            raise
        except EspalierError as error:
            if len(draws) == 1 and not stages:
                raise
            run = PlannedRun(one.dense, one.folder / f"round-{number:02}", f"round {number}, seed {one.seed}")
            broken.append(Outcome(run, "failed", error=str(error)))
            draws.remove(one)
    return stages, broken


def draws_of(settings: Settings, seeds: Sequence[int], out: Path) -> list[Draw]:
    """The lotteries of all seeds, each once."""
    folder = out / settings.folder_name
    return [Draw(settings, seed, folder / f"s{seed}") for seed in dict.fromkeys(seeds)]
