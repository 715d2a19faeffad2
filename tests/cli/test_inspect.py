"""`espalier inspect`: what it prints, the JSON and the drawing, and how it refuses."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

import espalier as es
from espalier.cli import main
from espalier.cli.models import builder_named, model_named

SMALL = ("inspect", "convnet4", "--input", "3,32,32", "--classes", "10")
SVG = "{http://www.w3.org/2000/svg}"


class Said(str):
    """Both streams of a command, and what it printed on each."""

    out: str
    err: str


def run(capfd: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Said:
    capfd.readouterr()
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    out, err = capfd.readouterr()
    assert left.value.code == code, out + err
    said = Said(out + err)
    said.out, said.err = out, err
    return said


def test_the_tree_names_groups_costs_and_layers(capfd: pytest.CaptureFixture[str]) -> None:
    said = run(capfd, *SMALL)
    assert "convnet4 at 3 x 32 x 32: 3.39 M MACs, 61.3 k parameters, 4 groups of channels" in said
    lines = [line.strip("│├└─ ") for line in said.splitlines()]
    start = next(k for k, line in enumerate(lines) if line.startswith("2 "))
    assert lines[start].endswith("32 channels, 73.7 k MACs and 722 parameters each")
    assert lines[start + 1 : start + 4] == ["out of features.3", "through features.4", "into features.6"]


def test_frozen_channels_come_with_the_reason(capfd: pytest.CaptureFixture[str]) -> None:
    said = run(capfd, *SMALL)
    assert "frozen: 0.0% of the parameters" in said
    (why,) = (line for line in said.splitlines() if line.strip().startswith("10  "))
    assert "output" in why


def test_the_forecast_is_the_cost_at_those_widths(capfd: pytest.CaptureFixture[str]) -> None:
    content = json.loads(run(capfd, *SMALL, "--ratios", "0.5,1", "--json", "-").out)
    net = model_named("convnet4", classes=10)
    from espalier.cli.models import example_input

    graph = es.trace(net, example_input((3, 32, 32)))
    half = es.cost(graph, {group: group.size // 2 for group in graph.groups})
    assert [row["keep"] for row in content["forecast"]] == [0.5, 1.0]
    assert (content["forecast"][0]["macs"], content["forecast"][0]["params"]) == (half.macs, half.params)
    assert content["forecast"][1]["macs"] == content["macs"] == es.cost(graph).macs
    said = run(capfd, *SMALL, "--ratios", "0.5")
    assert f"{half.macs / content['macs']:.1%}" in said


def test_json_says_all_of_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.json"
    said = run(capfd, *SMALL, "--json", str(file))
    assert f"written to {file}" in said
    content = json.loads(file.read_text())
    assert content == json.loads(run(capfd, *SMALL, "--json", "-").out)
    assert [group["size"] for group in content["groups"]] == [16, 32, 64, 64]
    member = next(m for m in content["groups"][0]["members"] if m["name"] == "features.3.weight")
    assert member == {"name": "features.3.weight", "dim": 1, "shape": [32, 16, 3, 3], "entries": 16, "role": "into"}
    assert content["frozen_params"] == sum(content["frozen_why"].values())
    assert sum(layer["macs"] for layer in content["costs"].values()) == content["macs"]


def test_the_drawing_has_a_box_for_every_layer(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.svg"
    run(capfd, *SMALL, "--svg", str(file))
    drawing = ElementTree.parse(file).getroot()
    assert drawing.get("role") == "img"
    assert "convnet4: 5 layers, 4 groups of channels, 1 frozen" in (drawing.get("aria-label") or "")
    boxes = [path for path in drawing.iter(f"{SVG}path") if path.find(f"{SVG}title") is not None]
    titles = [box.findtext(f"{SVG}title") or "" for box in boxes]
    assert titles[1].startswith("features.3 (Conv2d), 32 channels, group 2")
    assert titles[-1].startswith("head (Linear), 10 channels, frozen: ")
    classes = [box.get("class") for box in boxes]
    assert classes == ["mark s1", "mark s2", "mark s3", "mark s4", "mark s0"]
    tall = [-float((box.get("d") or "").split("v")[1].split("h")[0]) for box in boxes]
    assert tall[2] == tall[3] == pytest.approx(4 * tall[0], abs=0.5)
    style = drawing.findtext(f"{SVG}style") or ""
    assert "prefers-color-scheme: dark" in style
    assert "var(" not in style


def test_long_lists_are_cut_short(capfd: pytest.CaptureFixture[str]) -> None:
    command = ("inspect", "resnet20", "--input", "3,32,32", "--classes", "10")
    assert " more" in run(capfd, *command)
    assert " more" not in run(capfd, *command, "--all")


def test_files_and_libraries(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "m.safetensors"
    model = model_named("convnet4", classes=7)
    es.save(model, file, builder=builder_named("convnet4", classes=7), metadata={"input": [3, 24, 24]})
    assert "at 3 x 24 x 24" in run(capfd, "inspect", str(file))
    es.save(model, file)
    assert "save it by es.save(model, path, builder=...)" in run(capfd, "inspect", str(file), code=2)
    assert "at 3 x 64 x 64: " in run(capfd, "inspect", "torchvision/resnet18", "--input", "3,64,64")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("convnet5",), "did you mean 'convnet4'?"),
        (("timm/resnet18.a1_in1k",), "without tag or folder"),
        (("timm/nosuch",), "no timm model 'nosuch'"),
        (("nowhere.safetensors",), "no file 'nowhere.safetensors'"),
        (("convnet4", "--input", "3,x"), "--input takes whole numbers"),
        (("convnet4", "--input", "0,32,32"), "--input takes whole numbers"),
        (("convnet4", "--ratios", "0.5,half"), "--ratios takes numbers"),
        (("convnet4", "--ratios", "50"), "--ratios takes shares of channels"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments: tuple[str, ...], words: str, capfd: pytest.CaptureFixture[str]) -> None:
    said = run(capfd, "inspect", *arguments, code=2)
    assert words in said
    assert said.count("\n") == 1
