"""What the processes of a step share: numbers gathered, seeds apart, a mean of gradients."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_fisher.functional.multipass.passes import Evaluation


def gather(found: Any) -> list[Any]:
    """What all processes have found."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [found]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, found)
    return gathered


def seed_of(trainer: Trainer, index: int) -> int:
    """Of what is drawn for a sub-batch of this step: a function of the global seed, the step and its number."""
    own = int(os.environ.get("PL_GLOBAL_SEED", 0))
    return ((own * 2**31 + trainer.fit_loop.total_batch_idx) * 1009 + index) % 2**63


def mean_over_processes(parameters: Sequence[Tensor], found: Evaluation) -> Evaluation:
    """The mean of what all processes have found; a gradient that one of them lacks is zero there."""
    device = found.value.device
    value = found.value.double().reshape(1)
    held = torch.tensor([g is not None for g in found.gradient], device=device).double()
    numbers = torch.cat([value, held])
    torch.distributed.all_reduce(numbers)
    world = torch.distributed.get_world_size()
    gradient: list[Tensor | None] = [None] * len(parameters)
    anywhere = [i for i, count in enumerate(numbers[1:].tolist()) if count]
    for dtype in {parameters[i].dtype for i in anywhere}:  # one message, not one a parameter
        indices = [i for i in anywhere if parameters[i].dtype == dtype]
        pairs = [(parameters[i], found.gradient[i]) for i in indices]
        flat = torch.cat([(torch.zeros_like(p) if g is None else g).detach().flatten() for p, g in pairs])
        torch.distributed.all_reduce(flat)
        flat /= world
        for i, part in zip(indices, flat.split([parameters[i].numel() for i in indices]), strict=True):
            gradient[i] = part.view_as(parameters[i])
    return Evaluation(numbers[0] / world, tuple(gradient))
