"""Models by name: sizes that the papers give, shapes, start weights, and what is said about names and files that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import espalier as es
from espalier.errors import EspalierError
from espalier.tasks.classification.models import build_model, model_names
from espalier.tasks.vision import timm

ZOO = ["torchvision:resnet18", "timm:resnet18"]


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("convnet4", 0.061),
        ("resnet8", 0.075),
        ("resnet14", 0.17),
        ("resnet20", 0.27),  # arXiv 1512.03385, table 6, this and the next three
        ("resnet32", 0.46),
        ("resnet56", 0.85),
        ("resnet110", 1.7),
        ("resnet18", 11.17),
        ("resnet50", 23.5),
        ("vgg16_bn", 14.7),
        ("vgg19_bn", 20.0),
        ("mobilenetv1", 3.2),
        ("mobilenetv2", 2.2),
    ],
)
def test_number_of_parameters(name: str, millions: float) -> None:
    model = build_model(name, num_classes=10)
    assert round(size(model) / 1e6, len(str(millions).partition(".")[2])) == millions


def test_depth_of_the_cifar_family() -> None:
    for name in ("resnet8", "resnet14", "resnet20", "resnet32", "resnet56", "resnet110"):
        layers = [m for m in build_model(name, num_classes=10).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert len(layers) == int(name.removeprefix("resnet"))
    deeper = build_model("resnet", num_classes=10, depth=44, width=8)
    assert len([m for m in deeper.modules() if isinstance(m, nn.Conv2d | nn.Linear)]) == 44
    with pytest.raises(EspalierError, match="6n"):
        build_model("resnet", num_classes=10, depth=21)


@pytest.mark.parametrize("name", [*model_names(), *ZOO])
def test_images_become_logits_and_every_weight_learns(name: str) -> None:
    model = build_model(name, num_classes=7)
    logits = model(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", [*(name for name in model_names() if name != "resnet110"), "timm:resnet18"])
def test_channels_of_the_images(name: str) -> None:
    model = build_model(name, num_classes=10, in_channels=1).eval()
    assert model(torch.randn(1, 1, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("name", ["convnet4", "resnet8", "resnet18", "mobilenetv1", "mobilenetv2"])
@pytest.mark.parametrize("side", [8, 33, 64])
def test_other_sizes_of_images(name: str, side: int) -> None:
    assert build_model(name, num_classes=10).eval()(torch.randn(1, 3, side, side)).shape == (1, 10)


def test_vgg_says_which_images_are_too_small() -> None:
    model = build_model("vgg16_bn", num_classes=10)
    with pytest.raises(EspalierError, match="32 x 32"):
        model(torch.randn(1, 3, 16, 16))


@pytest.mark.parametrize("name", ["resnet20", "vgg16_bn", "mobilenetv2", "torchvision:resnet18", "timm:resnet18"])
def test_initial_weights_follow_the_seed(name: str) -> None:
    def built(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return list(build_model(name, num_classes=10).parameters())

    assert all(torch.equal(a, b) for a, b in zip(built(1), built(1), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(built(1), built(2), strict=True))


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("resnet8", {"width": 8}),
        ("resnet18", {"width": 16}),
        ("convnet4", {"width": 8}),
        ("vgg16_bn", {"width": 8}),
        ("mobilenetv2", {"width": 0.5}),
    ],
)
def test_width(name: str, args: dict[str, Any]) -> None:
    narrow = build_model(name, num_classes=10, **args)
    assert size(narrow) < 0.4 * size(build_model(name, num_classes=10))
    assert narrow.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 10)


def test_imagenet_stem_is_torchvisions() -> None:
    """The same names and shapes, so that its weight files fit."""
    own = build_model("resnet18", num_classes=1000, stem="imagenet").state_dict()
    theirs = build_model("torchvision:resnet18", num_classes=1000).state_dict()
    assert {key: value.shape for key, value in own.items()} == {key: value.shape for key, value in theirs.items()}


def test_imagenet_stem_computes_what_torchvision_computes() -> None:
    theirs = build_model("torchvision:resnet50", num_classes=10).eval()
    own = build_model("resnet50", num_classes=10, stem="imagenet").eval()
    own.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(own(images), theirs(images))


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet21", "resnet20"),
        ("vgg16", "vgg16_bn"),
        ("torchvision:resnet19", "resnet18"),
        ("timm:vit_tiny_patch16", "vit_tiny_patch16_"),
        ("timm:", "timm:NAME"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(EspalierError, match=nearest):
        build_model(name, num_classes=10)


@pytest.mark.parametrize("name", ["resnet20", "torchvision:resnet18", "timm:resnet18"])
def test_an_unknown_argument_is_a_type_error(name: str) -> None:
    """The recipe turns it into its own sentence."""
    with pytest.raises(TypeError):
        build_model(name, num_classes=10, wings=2)


@pytest.mark.parametrize("args", [{"name": "resnet18", "stem": "tiny"}, {"name": "torchvision:resnet18", "in_channels": 1}])
def test_what_a_model_cannot_be_is_refused(args: dict[str, Any]) -> None:
    with pytest.raises(EspalierError):
        build_model(num_classes=10, **args)


class TestStartWeights:
    """From the user's files, strictly."""

    @pytest.fixture
    def model(self) -> nn.Module:
        return build_model("convnet4", num_classes=10, width=4)

    def start(self, weights: Path | str, name: str = "convnet4", **args: Any) -> nn.Module:
        torch.manual_seed(9)
        return build_model(name, weights=str(weights), **{"num_classes": 10, "width": 4, **args})

    def test_a_pruned_model_of_espalier(self, model: nn.Module, tmp_path: Path) -> None:
        weight = model.features[3].weight
        weight.data[torch.rand_like(weight) < 0.9] = 0.0  # stored packed
        es.save(model, tmp_path / "small.safetensors")
        loaded = self.start(tmp_path / "small.safetensors").state_dict()
        assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())
        with pytest.raises(EspalierError, match=r"small\.safetensors"):
            self.start(tmp_path / "small.safetensors", num_classes=11)

    @pytest.mark.parametrize("kind", ["safetensors", "pt", "nested", "data-parallel", "compiled"])
    def test_files_of_each_kind(self, model: nn.Module, tmp_path: Path, kind: str) -> None:
        state, place = model.state_dict(), tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pt'}"
        if kind == "safetensors":
            save_file(state, place)
        elif kind == "nested":
            torch.save({"epoch": 3, "state_dict": state}, place)
        else:
            prefix = {"pt": "", "data-parallel": "module.", "compiled": "_orig_mod."}[kind]
            torch.save({prefix + key: value for key, value in state.items()}, place)
        loaded = self.start(place).state_dict()
        assert all(torch.equal(value, loaded[key]) for key, value in state.items())

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"num_classes": 11}, ["head.weight (10, 16) instead of (11, 16)"]),
            ({"name": "resnet8"}, ["lacks", "has besides"]),
            ({"in_channels": 1}, ["another shape", "features.0.weight"]),
        ],
    )
    def test_weights_of_another_model_are_refused(
        self, model: nn.Module, tmp_path: Path, change: dict[str, Any], words: list[str]
    ) -> None:
        save_file(model.state_dict(), tmp_path / "weights.safetensors")
        with pytest.raises(EspalierError) as caught:
            self.start(tmp_path / "weights.safetensors", **change)
        assert "\n" not in str(caught.value)
        for word in ["weights.safetensors", *words]:
            assert word in str(caught.value)

    def test_code_in_a_file_is_never_run(self, tmp_path: Path) -> None:
        torch.save({"weights": Harmful(tmp_path / "harm")}, tmp_path / "weights.pt")
        with pytest.raises(EspalierError, match="tensors only"):
            self.start(tmp_path / "weights.pt")
        assert not (tmp_path / "harm").exists()

    @pytest.mark.parametrize("name", ["missing.pt", "damaged.pt", "damaged.safetensors", "notes.txt", "list.pt"])
    def test_bad_files_are_named(self, tmp_path: Path, name: str) -> None:
        for damaged in ("damaged.pt", "damaged.safetensors", "notes.txt"):
            (tmp_path / damaged).write_bytes(b"nothing of the kind")
        torch.save([torch.zeros(3)], tmp_path / "list.pt")
        with pytest.raises(EspalierError, match=name.replace(".", r"\.")) as caught:
            self.start(tmp_path / name)
        assert "\n" not in str(caught.value)


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.place, "harm"))


class TestPretrained:
    """Only torchvision and timm publish weights; here both are stubbed, nothing is fetched."""

    def test_own_models_have_none(self) -> None:
        with pytest.raises(EspalierError, match="no pretrained weights"):
            build_model("resnet20", num_classes=10, weights="pretrained")

    def test_torchvision_weights_fill_all_but_another_head(self, monkeypatch: pytest.MonkeyPatch) -> None:
        published = build_model("torchvision:resnet18", num_classes=1000).state_dict()
        fetched: list[str] = []

        def fetch(url: str, *_: Any, **__: Any) -> dict[str, torch.Tensor]:
            fetched.append(url)
            return published

        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
        state = build_model("torchvision:resnet18", num_classes=10, weights="pretrained").state_dict()
        assert fetched
        assert fetched[0].startswith("https://download.pytorch.org/models/resnet18")
        assert state["fc.weight"].shape == (10, 512)
        assert all(torch.equal(value, published[key]) for key, value in state.items() if not key.startswith("fc."))

    @pytest.mark.parametrize("name", ZOO)
    def test_a_failed_download_is_one_sentence(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise OSError("no network in tests\nat all")

        build = timm().create_model
        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
        monkeypatch.setattr(
            timm(), "create_model", lambda *args, pretrained, **rest: (fail if pretrained else build)(*args, **rest)
        )
        with pytest.raises(EspalierError, match="could not be fetched") as caught:
            build_model(name, num_classes=10, weights="pretrained")
        assert "\n" not in str(caught.value)
