"""Copy the records of finished runs (recipe, metrics, result; no weights) to where the results page keeps them.

The folder of the data is cut down to its last part: where it lay on one machine is nobody's business.

Usage: python docs/results/collect.py RUNS docs/results/NAME
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml


def main(source: Path, target: Path) -> None:
    count = 0
    for run in sorted(folder for folder in source.iterdir() if (folder / "result.json").is_file()):
        place = target / run.name
        place.mkdir(parents=True, exist_ok=True)
        recipe = yaml.safe_load((run / "recipe.yaml").read_text())
        if recipe["data"]["path"]:
            recipe["data"]["path"] = Path(recipe["data"]["path"]).name
        (place / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        for name in ("metrics.jsonl", "result.json"):
            (place / name).write_text((run / name).read_text())
        count += 1
    print(f"{count} runs in {target}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
