"""What the regularizer works with; anything else is refused before training starts."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Container
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_fisher.callbacks.multipass.stepped import stepped_parameters
from lightning_fisher.exceptions import acting
from lightning_fisher.functional.evaluation.state.layers import refuse_renormalized_embeddings

# Where optimizers that don't step on `.grad` find their gradients: Opacus, BackPACK, fastDP, Megatron.
_OTHER_GRADIENTS = ("grad_sample", "grad_batch", "private_grad", "main_grad")
_PRECISIONS = ("Precision", "MixedPrecision", "DoublePrecision")


def _classes(package: str, *names: str) -> tuple[Any, ...]:
    """Lightning's classes of these names, also those of its other distribution, `pytorch_lightning`, where in use."""
    owners = [sys.modules.get(f"{root}.{package}") for root in ("lightning.pytorch", "pytorch_lightning")]
    return tuple(getattr(owner, name) for owner in owners if owner is not None for name in names)


def require_supported(trainer: Trainer, pl_module: LightningModule) -> None:
    """Check module, strategy and precision.

    Raises:
        ValueError: In one line, with the remedy.
    """
    name = type(pl_module).__name__
    if "dataloader_iter" in inspect.signature(pl_module.training_step).parameters:
        raise ValueError(
            f"{acting()} needs `training_step(batch, batch_idx)`, but {name} takes `dataloader_iter`; "
            "take the batch instead."
        )
    require_whole_weights(trainer, acting(), "perturb")
    refuse_renormalized_embeddings(pl_module)
    precision = trainer.precision_plugin
    if type(precision) not in _classes("plugins.precision", *_PRECISIONS):
        raise ValueError(
            f"{acting()} needs float32 or float64 weights, but the Trainer uses {type(precision).__name__} "
            f'(precision="{precision.precision}"), in which its finite difference is noise; use "32-true", '
            '"bf16-mixed" or "16-mixed".'
        )


def require_whole_weights(trainer: Trainer, who: str, purpose: str) -> None:
    """Check that every process holds all weights.

    Raises:
        ValueError: In one line, with the remedy.
    """
    strategy = trainer.strategy
    whole = isinstance(strategy, _classes("strategies", "SingleDeviceStrategy", "DDPStrategy"))
    others = ("DeepSpeedStrategy", "XLAStrategy", "SingleDeviceXLAStrategy")  # of which these two were never tried
    if not whole or isinstance(strategy, _classes("strategies", *others)):
        raise ValueError(
            f"{who} works on one device or with DDP, but the Trainer uses {type(strategy).__name__}, which shards or "
            f'moves the weights it has to {purpose}; use `strategy="ddp"`.'
        )


def require_trainable(trainer: Trainer, pl_module: LightningModule) -> None:
    """Check what exists once training starts: the optimizers, and the layers after the strategy's changes.

    Raises:
        ValueError: In one line, with the remedy.
    """
    name = type(pl_module).__name__
    if any(isinstance(module, torch.nn.SyncBatchNorm) for module in pl_module.modules()):
        raise ValueError(
            f"{acting()} runs its extra passes on each process alone, but {name} has SyncBatchNorm layers, "
            "which wait for all; use `sync_batchnorm=False`."
        )
    parameters = stepped_parameters(trainer, pl_module)
    used = [o for o in trainer.optimizers if stepped_parameters(trainer, pl_module, [o])]
    if pl_module.automatic_optimization and len(used) > 1:
        raise ValueError(
            f"{acting()} needs one optimizer in automatic optimization, but {name}.configure_optimizers gives "
            f"{len(used)}; return one, with parameter groups where they differ."
        )
    if not used:
        raise ValueError(
            f"{acting()} needs an optimizer with parameters that require gradients, but "
            f"{name}.configure_optimizers gives none."
        )
    for optimizer in used:
        _require_gradients(optimizer, name)
    _refuse_steps_in_backward(pl_module, parameters)
    for parameter in parameters:
        _require_perturbable(parameter, name)
    if trainer.world_size > 1:
        gathered: Any = pl_module.all_gather(torch.tensor(float(trainer.num_training_batches), device=pl_module.device))
        counts = gathered.tolist()
        if len(set(counts)) > 1:
            raise ValueError(
                f"{acting()} needs as many batches on every process, but they have {counts}: those with more "
                "would wait for the others for ever; use Lightning's distributed sampler, or `limit_train_batches`."
            )


def _require_gradients(optimizer: torch.optim.Optimizer, name: str) -> None:
    """Check that an optimizer steps on ``.grad``, and on dense gradients."""
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise ValueError(
            f"{acting()} gives dense gradients, but {name}.configure_optimizers returns SparseAdam, which takes "
            "sparse ones only; use another optimizer."
        )
    fields = {field for group in optimizer.param_groups for p in group["params"] for field in vars(p)}
    searching = [group["line_search_fn"] for group in optimizer.param_groups if group.get("line_search_fn")]
    if searching:
        raise ValueError(
            f"{acting()} adds to gradients and leaves the value of the loss alone, but {type(optimizer).__name__} of "
            f"{name}.configure_optimizers compares values (line_search_fn={searching[0]!r}); use `line_search_fn=None`."
        )
    found = sorted(fields & set(_OTHER_GRADIENTS)) or [f for f in ("grad_samples",) if hasattr(type(optimizer), f)]
    if found:
        raise ValueError(
            f"{acting()} adds its gradient to `.grad`, but {type(optimizer).__name__} of "
            f"{name}.configure_optimizers steps on `{found[0]}` (per-sample or separate gradients), where it would be "
            "lost; use an optimizer that steps on `.grad`."
        )


def _refuse_steps_in_backward(pl_module: LightningModule, stepped: list[torch.nn.Parameter]) -> None:
    """Check that no parameter is stepped by a hook in the backward pass instead of by an optimizer of the Trainer."""
    known = {id(p) for p in stepped}
    for name, parameter in pl_module.named_parameters():
        hooked = parameter.requires_grad and bool(parameter._post_accumulate_grad_hooks)  # type: ignore[attr-defined]
        if hasattr(parameter, "_in_backward_optimizers") or (hooked and id(parameter) not in known):
            raise ValueError(
                f"{acting()} perturbs the parameters that the optimizers of the Trainer step, but {name!r} of "
                f"{type(pl_module).__name__} is stepped by a hook in the backward pass; return its optimizer from "
                "`configure_optimizers`."
            )


def refuse_other_gradients(optimizer: torch.optim.Optimizer, without: Container[int] = ()) -> None:
    """Check after a backward pass that no parameter holds gradients elsewhere than in ``.grad``.

    Args:
        optimizer: Whose parameters.
        without: Those, by id, of which the extra passes got no gradient: a layer may keep it elsewhere.

    Raises:
        ValueError: In one line, if one holds those of single samples, or one that the extra passes didn't get.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    held = [
        (field, value, p) for p in parameters for field, value in vars(p).items() if isinstance(value, torch.Tensor)
    ]
    for field, value, parameter in held:
        if value.ndim == parameter.ndim + 1 and value.shape[1:] == parameter.shape:
            raise ValueError(
                f"{acting()} adds its gradient to `.grad`, but parameters hold gradients of single samples in "
                f"`{field}`, on which {type(optimizer).__name__} may step; use an optimizer that steps on `.grad`."
            )
        if id(parameter) in without and value.shape == parameter.shape and value.is_floating_point():
            raise ValueError(
                f"{acting()} adds its gradient to `.grad`, but a backward pass leaves that of a parameter in "
                f"`{field}`, on which {type(optimizer).__name__} may step; return it from the backward pass."
            )


def _require_perturbable(parameter: torch.Tensor, name: str) -> None:
    """Check that a weight can be moved by a finite difference."""
    if parameter.is_complex() or parameter.layout is not torch.strided:
        kind = f"{parameter.dtype}" if parameter.is_complex() else f"{parameter.layout}"
        raise ValueError(
            f"{acting()} needs real, dense weights, but {name} has {kind} ones; hold complex ones as real "
            "ones (`torch.view_as_complex` in the forward pass) and sparse ones as dense ones with a mask."
        )
    if parameter.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{acting()} needs float32 or float64 weights, but {name} has {parameter.dtype} ones, in which "
            'its finite difference is noise; keep float32 weights and use `precision="bf16-mixed"`.'
        )
