"""`espalier sweep GRID.yaml`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from espalier.cli.recipes import find_recipe
from espalier.cli.watching import Watch, leave_tidily
from espalier.errors import EspalierError

if TYPE_CHECKING:
    from espalier.recipes.experiments.carrying import Outcome, Place
    from espalier.recipes.experiments.grid import Grid
    from espalier.recipes.experiments.sweep import SweepRun

Overrides = list[tuple[str, Any]]


def sweep(
    grid: Annotated[Path, typer.Argument(help="A YAML file: a recipe, and the values that its keys take.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="For every run.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where run folders and sweep.json go; default: runs/NAME.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time; default: 1, on ray what fits.")] = None,
    cores: Annotated[
        int | None,
        typer.Option(min=1, help="Cores of its own and threads of each run; default with several jobs: one thread, any core."),
    ] = None,
    gpus: Annotated[str | None, typer.Option(help="GPUs that the jobs share in turn, such as 0,1.")] = None,
    on: Annotated[str, typer.Option(help="local: processes on this machine; ray: a Ray cluster.")] = "local",
    address: Annotated[str | None, typer.Option(help="Ray cluster: auto, HOST:PORT, or local to start one.")] = None,
    gpus_per_run: Annotated[float | None, typer.Option(min=0, help="On ray: GPUs of each run; 0.5 puts two on one.")] = None,
    retries: Annotated[int | None, typer.Option(min=0, help="On ray: how often a run may lose its node.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Start at most so many runs now.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs with their states and end.")] = False,
    search: Annotated[str | None, typer.Option(help="optuna: search the ranges of the section 'search'.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Of the search, in all; default: the section's.")] = None,
) -> None:
    """Train every combination of a grid; finished runs are not run again, half-finished ones continue."""
    from espalier.recipes.experiments.grid import expand, read_grid, refuse_missing_files
    from espalier.recipes.experiments.sweep import Ledger, plan_sweep, run_sweep
    from espalier.recipes.experiments.sweep_search import Search, lowest, read_search
    from espalier.recipes.recipe import split_override

    _refuse_unused(on=on, address=address, gpus_per_run=gpus_per_run, retries=retries, gpus=gpus)
    if search not in (None, "optuna") or (search is None and trials is not None):
        raise EspalierError("A search is asked for by --search optuna, with --trials 20 or so.")
    if search and limit is not None:
        raise EspalierError("Give --trials to a search, not --limit.")
    read = read_grid(grid, find_recipe)
    given: Overrides = [split_override(text) for text in overrides or []]
    spec = read_search(read, trials) if search else None
    runs = expand(read, given, None if spec is None else lowest(spec))
    folder = out if out is not None else Path("runs") / read.name
    planned = plan_sweep(runs, folder)
    if dry_run:
        _list_runs(read, planned, each_trial=spec is not None)
        return
    if read.search is not None and spec is None:
        typer.echo(f"the section 'search' of {grid.name} waits for --search optuna; the grid is run as it is")
    if on == "local":
        refuse_missing_files(runs)
    ledger = Ledger(read, folder)
    place = _place(on, jobs, cores, _numbers(gpus), address, gpus_per_run, retries)
    leave_tidily()
    outcomes: list[Outcome] = []
    with Watch(len(planned) * (1 if spec is None else spec.trials), place.slots) as watch:
        study = None if spec is None else Search(read, spec, given, folder)
        if study is None:
            carried = run_sweep(planned, ledger, place, watch.tell, watch.tick, limit=limit)
        else:
            carried = study.run(ledger, place, watch.tell, watch.tick)
        for outcome in carried:
            outcomes.append(outcome)
            watch.finished(outcome)
    _say_end(ledger.rows, ledger.search, folder)
    failed = _failed(ledger.rows, outcomes)
    if failed:
        typer.echo(f"{len(failed)} of {len(ledger.rows)} runs failed; the same command tries them again.", err=True)
        raise typer.Exit(1)


def _refuse_unused(*, on: str, gpus: str | None, **ray_only: object) -> None:
    """Refuse options of the other place: they would do nothing."""
    if on not in ("local", "ray"):
        raise EspalierError(f"Runs are carried out --on local or --on ray, not {on!r}.")
    if on == "local":
        for name, value in ray_only.items():
            if value is not None:
                raise EspalierError(f"--{name.replace('_', '-')} is for --on ray: leave it out, or add --on ray.")
    elif gpus is not None:
        raise EspalierError("On a Ray cluster give --gpus-per-run, not --gpus: Ray chooses which.")


def _place(
    on: str,
    jobs: int | None,
    cores: int | None,
    gpus: list[int],
    address: str | None,
    gpus_per_run: float | None,
    retries: int | None,
) -> Place:
    if on == "ray":
        from espalier.recipes.experiments.sweep_ray import RayCluster

        shares = {"cpus": cores or 1, "gpus": gpus_per_run or 0.0, "retries": 3 if retries is None else retries}
        return RayCluster(address or "auto", jobs=jobs, **shares)  # type: ignore[arg-type]
    from espalier.recipes.experiments.carrying import LocalProcesses

    place = LocalProcesses(jobs or 1, cores, gpus)
    if place.note is not None:
        typer.echo(place.note)
    return place


def _numbers(text: str | None) -> list[int]:
    try:
        return [] if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise EspalierError(f"--gpus takes numbers of GPUs separated by commas, not {text!r}.") from None


def _list_runs(grid: Grid, planned: list[SweepRun], *, each_trial: bool) -> None:
    if grid.claim:
        typer.echo(grid.claim)
    if each_trial:
        typer.echo("The runs of one trial, at the low ends of the ranges:")
    for run in planned:
        typer.echo(f"{run.state:<13}  {run.folder.name}  {run.planned.words}")
    typer.echo(_counts(run.state for run in planned))


def _say_end(rows: list[dict[str, Any]], search: dict[str, Any] | None, folder: Path) -> None:
    typer.echo(f"{_counts(row['state'] for row in rows)}; written to {folder / 'sweep.json'}, see `espalier table {folder}`")
    if search is not None and search["best"] is not None:
        best = search["best"]
        known = {key: f"{x:.6g}" if isinstance(x, float) else x for key, x in best["settings"].items()}
        values = ", ".join(f"{key}={value}" for key, value in known.items())
        goal = next(key for key in best if key not in ("trial", "settings"))
        typer.echo(f"best of {len(search['trials'])} trials: number {best['trial']}, {goal} {best[goal]:.4f}, at {values}")


def _failed(rows: list[dict[str, Any]], outcomes: list[Outcome]) -> set[str]:
    """Runs that stand as failed, from now or from earlier; one whose folder cannot be written to is known by its outcome."""
    finished = {row["run"] for row in rows if row["state"] == "finished"}
    now = {outcome.run.folder.name for outcome in outcomes if outcome.state == "failed"}
    return {row["run"] for row in rows if row["state"] == "failed"} | (now - finished)


def _counts(states: Any) -> str:
    """How many runs there are of each state.

    Example:
        >>> _counts(["finished", "waiting", "finished"])
        '3 runs: 2 finished, 1 waiting'
    """
    counted = Counter(states)
    total = sum(counted.values())
    return f"{total} run{'' if total == 1 else 's'}: " + ", ".join(f"{count} {state}" for state, count in counted.items())
