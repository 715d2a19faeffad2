"""`espalier lottery` from outside."""

import json
from pathlib import Path

import pytest
import yaml

from espalier.cli import main
from tests.recipes.conftest import TINY


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    return str(file)


def run(capfd: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    capfd.readouterr()
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    out, err = capfd.readouterr()
    assert left.value.code == code, out + err
    return out + err


def test_draws_a_ticket_writes_its_table_and_runs_nothing_twice(tmp_path, recipe, capfd) -> None:
    command = ["lottery", recipe, "train.epochs=1", "data.limit=96", "--rounds", "1", "--controls", "", "--rewind", "1"]
    said = run(capfd, *command, "--seeds", "0", "--out", str(tmp_path / "runs"))
    assert "done round 1, seed 0: test accuracy" in said
    assert "rewound to step 1" in said
    (folder,) = (tmp_path / "runs").iterdir()
    content = json.loads((folder / "lottery.json").read_text())
    assert [row["round"] for row in content["rows"]] == [0, 1]
    again = run(capfd, *command, "--seeds", "0", "--out", str(tmp_path / "runs"))
    assert "kept round 1, seed 0" in again
    assert "start " not in again


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rewind", "soon"), "A moment to rewind to"),
        (("--densities", "0.5,0.8"), "each below the one before"),
        (("--densities", "half"), "--densities takes numbers"),
        (("--controls", "luck"), "known are random-init, random-masks"),
        (("--finders", "ocsp"), "finds no tickets"),
        (("--fraction", "1.5"), "fraction a share"),
        (("--rewind", "99ep"), "beyond the 30 steps"),
    ],
)
def test_mistakes_end_in_one_sentence(tmp_path, recipe, capfd, arguments, words) -> None:
    said = run(capfd, "lottery", recipe, *arguments, "--out", str(tmp_path / "runs"), code=2)
    assert words in said
    assert len(said.strip().splitlines()) == 1
