"""`import espalier` stays light: what takes long to import comes when it is used."""

import json
import subprocess
import sys

import pytest

import espalier as es

HEAVY = ("torch._dynamo", "torchvision", "timm", "matplotlib")


def heavy_after(code):
    """Which of the heavy modules a fresh process has loaded after ``code``."""
    code = f"import json, sys; {code}; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    return json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def test_importing_espalier_loads_nothing_heavy():
    assert heavy_after("import espalier") == []


def test_the_recipes_of_one_process_leave_the_wrapper_alone():
    assert "torch._dynamo" not in heavy_after("import espalier.recipes.training.setup")


@pytest.mark.parametrize("code", ["import espalier; espalier.DistributedDataParallel", "from espalier import *"])
def test_the_wrapper_comes_when_it_is_asked_for(code):
    assert heavy_after(f"{code}; assert 'espalier.distributed.following' in sys.modules") == ["torch._dynamo"]


def test_every_public_name_is_listed_and_there():
    assert set(es.__all__) <= set(dir(es))
    assert all(hasattr(es, name) for name in es.__all__)
    assert es.DistributedDataParallel is es.DistributedDataParallel


def test_other_names_are_refused_as_by_any_module():
    with pytest.raises(AttributeError, match="module 'espalier' has no attribute 'Distributed'"):
        es.Distributed  # noqa: B018
