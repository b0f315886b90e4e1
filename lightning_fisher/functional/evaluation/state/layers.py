"""The layers of a module, and two kinds that need care."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def submodules(module: nn.Module) -> list[nn.Module]:
    """Every module of the tree once, in the order of `torch.nn.Module.modules`, which takes twice as long."""
    found: dict[int, nn.Module] = {}
    waiting = [module]
    while waiting:
        submodule = waiting.pop()
        if id(submodule) not in found:
            found[id(submodule)] = submodule
            waiting.extend(child for child in reversed(list(submodule._modules.values())) if child is not None)
    return list(found.values())


def refuse_renormalized_embeddings(module: nn.Module) -> None:
    """Refuse embeddings with ``max_norm``, whose forward pass changes the weights.

    Raises:
        ValueError: If there is one.
    """
    for name, submodule in module.named_modules():
        if isinstance(submodule, (nn.Embedding, nn.EmbeddingBag)) and submodule.max_norm is not None:
            raise ValueError(
                f"Expected forward passes that leave the weights alone, but the embedding {name or 'itself'!r} "
                f"renormalizes its weights (max_norm={submodule.max_norm}); set `max_norm=None`."
            )


def standardizes_one(input: Tensor, running_mean: Tensor | None = None, *args: Any, **kwargs: Any) -> bool:
    """Whether a call of batch-norm with batch statistics sees a batch of one: timm's standardized weights, say.

    Samples folded into another dimension show in the comparison of the outputs.
    """
    return running_mean is None and input.shape[0] == 1
