"""What the regularizer works with; anything else is refused before training starts."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_fisher.functional.evaluation.module_state import refuse_renormalized_embeddings

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
    if not pl_module.automatic_optimization:
        raise ValueError(
            f"FisherRegularizer needs automatic optimization with one optimizer, but {name} sets "
            "`automatic_optimization = False`; call `lightning_fisher.functional.penalty_gradient` in its own "
            "`training_step` instead."
        )
    if "dataloader_iter" in inspect.signature(pl_module.training_step).parameters:
        raise ValueError(
            f"FisherRegularizer needs `training_step(batch, batch_idx)`, but {name} takes `dataloader_iter`; "
            "take the batch instead."
        )
    require_whole_weights(trainer, "FisherRegularizer", "perturb")
    for parameter in pl_module.parameters():
        if parameter.requires_grad and (parameter.is_complex() or parameter.layout is not torch.strided):
            kind = f"{parameter.dtype}" if parameter.is_complex() else f"{parameter.layout}"
            raise ValueError(
                f"FisherRegularizer needs real, dense weights, but {name} has {kind} ones; hold complex ones as real "
                "ones (`torch.view_as_complex` in the forward pass) and sparse ones as dense ones with a mask."
            )
        if parameter.requires_grad and parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"FisherRegularizer needs float32 or float64 weights, but {name} has {parameter.dtype} ones, in which "
                'its finite difference is noise; keep float32 weights and use `precision="bf16-mixed"`.'
            )
    refuse_renormalized_embeddings(pl_module)
    precision = trainer.precision_plugin
    if type(precision) not in _classes("plugins.precision", *_PRECISIONS):
        raise ValueError(
            f"FisherRegularizer needs float32 or float64 weights, but the Trainer uses {type(precision).__name__} "
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
            f"FisherRegularizer runs its extra passes on each process alone, but {name} has SyncBatchNorm layers, "
            "which wait for all; use `sync_batchnorm=False`."
        )
    own = {id(parameter) for parameter in pl_module.parameters()}
    used = [o for o in trainer.optimizers if any(id(p) in own for group in o.param_groups for p in group["params"])]
    if len(used) != 1:
        raise ValueError(
            f"FisherRegularizer needs one optimizer over the module's parameters, but {name}.configure_optimizers "
            f"gives {len(used)}; return one, with parameter groups where they differ."
        )
    if isinstance(used[0], torch.optim.SparseAdam):
        raise ValueError(
            f"FisherRegularizer gives dense gradients, but {name}.configure_optimizers returns SparseAdam, which takes "
            "sparse ones only; use another optimizer."
        )
    if trainer.world_size > 1:
        gathered: Any = pl_module.all_gather(torch.tensor(float(trainer.num_training_batches), device=pl_module.device))
        counts = gathered.tolist()
        if len(set(counts)) > 1:
            raise ValueError(
                f"FisherRegularizer needs as many batches on every process, but they have {counts}: those with more "
                "would wait for the others for ever; use Lightning's distributed sampler, or `limit_train_batches`."
            )
