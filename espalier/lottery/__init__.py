"""Lottery tickets: masks that are found by training, and what is asked of them.

A ticket's masks are a dictionary, name of a weight -> bool tensor of its shape, True where the weight stays. ``next_masks``
finds the masks of the next round in a trained model, ``es.Ticket`` trains a model under them, ``random_masks`` are the control,
``overlap`` compares seeds, ``interpolate`` tells whether two trainings of one ticket end in the same valley.

Frankle, Carbin: "The Lottery Ticket Hypothesis", ICLR 2019, arXiv 1803.03635; Frankle, Dziugaite, Roy, Carbin: "Linear Mode
Connectivity and the Lottery Ticket Hypothesis", ICML 2020, arXiv 1912.05671 (rewinding to step k, instability analysis); Renda,
Frankle, Carbin: "Comparing Rewinding and Fine-tuning in Neural Network Pruning", ICLR 2020, arXiv 2003.02389 (learning-rate
rewinding).

A ticket of ten rounds by hand (`espalier lottery RECIPE` does it from the command line, with controls and a table)::

    start, masks = copy.deepcopy(model.state_dict()), None           # or the state at an early step
    for number in range(10):
        model.load_state_dict(start)                                 # rewinding
        method = es.Dense() if masks is None else es.Ticket(f"masks-{number}.safetensors")
        pruner = es.Pruner(model, optimizer := make_optimizer(model), method, total_steps=steps)
        train(model, optimizer)
        pruner.finish()
        masks = es.lottery.next_masks(es.lottery.weights_of(model), masks)
        es.lottery.save_masks(masks, f"masks-{number + 1}.safetensors")
"""

from espalier.lottery.files import load_masks, save_masks
from espalier.lottery.siblings import Point, instability, interpolate
from espalier.lottery.tickets import (
    Tickets,
    density,
    masks_of_zeros,
    next_masks,
    overlap,
    random_masks,
    remaining_after,
    weights_of,
)

__all__ = [
    "Point",
    "Tickets",
    "density",
    "instability",
    "interpolate",
    "load_masks",
    "masks_of_zeros",
    "next_masks",
    "overlap",
    "random_masks",
    "remaining_after",
    "save_masks",
    "weights_of",
]
