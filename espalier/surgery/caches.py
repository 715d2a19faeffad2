"""What modules have kept of the old shapes."""

from __future__ import annotations

from torch import nn


def forget(model: nn.Module) -> None:
    """Let modules in evaluation mode forget what they have gathered from their parameters, such as the attention biases of
    LeViT: they do so when they are told to train. Every mode is as before."""
    modules = list(model.modules())
    modes = [(module, module.training) for module in modules]
    for module in modules:
        if type(module).train is not nn.Module.train and not module.training:
            module.train(True)
            module.train(False)
    for module, mode in modes:
        if module.training != mode:
            module.training = mode
