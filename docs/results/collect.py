"""Copy the records of runs (recipe, metrics, result; no weights) to where the results page keeps them.

The folder of the data is cut down to its last part: where it lay on one machine is nobody's business. Unfinished runs are
left out unless asked for.

Usage: python docs/results/collect.py [--unfinished] RUNS docs/results/NAME
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import yaml


def main(source: Path, target: Path, *, unfinished: bool) -> None:
    count = 0
    for run in sorted(folder for folder in source.iterdir() if (folder / "metrics.jsonl").is_file()):
        if not unfinished and not (run / "result.json").is_file():
            continue
        place = target / run.name
        place.mkdir(parents=True, exist_ok=True)
        recipe = yaml.safe_load((run / "recipe.yaml").read_text())
        if recipe["data"]["path"]:
            recipe["data"]["path"] = Path(recipe["data"]["path"]).name
        (place / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        for name in ("metrics.jsonl", "result.json"):
            if (run / name).is_file():
                shutil.copyfile(run / name, place / name)
        count += 1
    if (source / "sweep.json").is_file():
        shutil.copyfile(source / "sweep.json", target / "sweep.json")
    print(f"{count} runs in {target}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--unfinished", action="store_true")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    given = parser.parse_args()
    main(given.source, given.target, unfinished=given.unfinished)
