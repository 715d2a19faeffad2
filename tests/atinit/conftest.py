"""The small net of the Pruner's tests."""

from tests.pruner.conftest import make_net

__all__ = ["make_net"]
