"""What comes out is an ordinary small model: it is saved, loaded in another process, and exported."""

import subprocess
import sys

import pytest
import torch

import espalier as es
from tests.structured.nets import METHODS, Training, batch, net

LOAD = """
import sys, torch, espalier as es
from tests.structured.nets import batch, net
torch.set_num_threads(1)
model = es.load(sys.argv[1], net(seed=77))
torch.save(model.eval()(batch(0)[0]), sys.argv[2])
"""


@pytest.fixture(scope="module")
def cut():
    training = Training(METHODS["ocsp"]).train()
    training.finish()
    return training.net.eval()


def test_a_fresh_process_loads_a_saved_model_into_a_dense_one(cut, tmp_path, project):
    es.save(cut, tmp_path / "small.safetensors")
    subprocess.run([sys.executable, "-c", LOAD, tmp_path / "small.safetensors", tmp_path / "out.pt"], cwd=project, check=True)
    assert torch.equal(torch.load(tmp_path / "out.pt", weights_only=True), cut(batch(0)[0]))


@pytest.mark.parametrize("key", ["ocsp-progressive", "epi-taylor", "prune-at-0", "force"])
def test_a_saved_model_loads_into_a_dense_one_and_trains_on(key, tmp_path):
    training = Training(METHODS[key]).train()
    training.finish()
    es.save(training.net, tmp_path / "small.safetensors")
    fresh = es.load(tmp_path / "small.safetensors", net(seed=77))
    assert torch.equal(fresh.eval()(batch(0)[0]), training.net.eval()(batch(0)[0]))
    fresh.train()(batch(0)[0]).sum().backward()
    assert {n: p.grad.shape for n, p in fresh.named_parameters()} == {n: p.shape for n, p in training.net.named_parameters()}


def test_exported_programs_agree(cut):
    x = batch(0)[0]
    program = torch.export.export(cut, (x,))
    torch.testing.assert_close(program.module()(x), cut(x))
