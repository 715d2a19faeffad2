"""`torchrun` starts the same command in several processes; rank 0 writes, all agree."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from espalier.recipes.recipe import to_yaml
from espalier.recipes.spec import Recipe

ROOT = Path(__file__).resolve().parents[2]


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_two_gloo_ranks_cut_the_same_channels_and_resume(tmp_path: Path, tiny: Callable[..., Recipe]) -> None:
    pruning = "pruning={method: ocsp, keep_macs: 0.5, checks_per_epoch: 5, start: 0.1, recalibrate: 2}"
    more = ("model.width=16", "train.ema=0.9", "train.threads=1", "train.checkpoint_every.steps=1")
    file = tmp_path / "recipe.yaml"
    file.write_text(to_yaml(tiny(pruning, *more)))
    whole = torchrun("-m", "espalier", "train", str(file), "--folder", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    result = json.loads((tmp_path / "whole/result.json").read_text())
    assert result["keep_macs"] <= 0.5
    (cut,) = result["cuts"]
    script = str(ROOT / "tests/recipes/interrupted.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        assert torchrun(script, str(file), str(tmp_path / "killed"), str(cut["step"] - 1), "9").returncode != 0
        again = torchrun(script, str(file), str(tmp_path / "killed"), "-1", "9")
    assert again.returncode == 0, again.stderr
    for name in ("model.safetensors", "model_ema.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


@pytest.mark.slow
def test_two_gloo_ranks_train_one_model_and_resume(tmp_path: Path, tiny: Callable[..., Recipe]) -> None:
    recipe = tiny("train.accumulate=2", "train.ema=0.9", "train.threads=1", "train.checkpoint_every.steps=3")
    file = tmp_path / "recipe.yaml"
    file.write_text(to_yaml(recipe))
    whole = torchrun("-m", "espalier", "train", str(file), "--folder", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.count("written to") == 1
    result = json.loads((tmp_path / "whole/result.json").read_text())
    assert result["machine"]["processes"] == 2
    assert result["sparsity"] == pytest.approx(0.8, abs=0.002)
    # Killed in both ranks at the same forward pass, then continued.
    script = str(ROOT / "tests/recipes/interrupted.py")
    environment = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment])
    try:
        assert torchrun(script, str(file), str(tmp_path / "killed"), "11", "9").returncode != 0
        again = torchrun(script, str(file), str(tmp_path / "killed"), "-1", "9")
    finally:
        os.environ["PYTHONPATH"] = environment
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "killed/model.safetensors").read_bytes()
    averaged = load_file(tmp_path / "killed/model_ema.safetensors")
    for name, tensor in load_file(tmp_path / "killed/model.safetensors").items():
        if tensor.ndim == 4:
            assert (averaged[name][tensor == 0] == 0).all()
