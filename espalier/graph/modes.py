"""The parts of torch that are not promised to stay: dispatch modes, as torch's own FlopCounterMode uses them."""

from __future__ import annotations

import torch

from espalier.errors import EspalierError

try:
    from torch._C import DisableTorchFunction as without_functions  # function modes don't see what happens inside
    from torch._C._functorch import peek_interpreter_stack as transform  # vmap or grad under way, None if there is none
    from torch.utils._mode_utils import no_dispatch as without_operations  # and neither do dispatch modes
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError as error:  # pragma: no cover
    raise EspalierError(
        f"torch {torch.__version__} has no dispatch modes as espalier knows them: use torch 2.11 to 2.15."
    ) from error

__all__ = ["TorchDispatchMode", "transform", "without_functions", "without_operations"]
