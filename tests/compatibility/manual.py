"""The rows of manual optimization: steps of `tests/callbacks/multipass/manual` without us, with us, by plain loops."""

from __future__ import annotations

import functools
from typing import Any

import torch
from lightning.pytorch import Trainer

from lightning_fisher import FisherRegularizer
from tests.callbacks.multipass.manual import published, steps, worker
from tests.callbacks.multipass.manual.loops import ALPHA, PARTS
from tests.callbacks.tiny import loader, seeded

BETA = worker.BETA
SETUPS = {
    "one optimizer, clipping, a scheduler": steps.One,
    "two optimizers, one loss each (GAN)": steps.Gan,
    "the same with toggled optimizers": steps.ToggledGan,
    "DCGAN, batch-norm": published.DCGAN,
    "a Wasserstein critic with clamped weights, two steps a batch": steps.Clamped,
    "WGAN-GP, the generator in every second batch": published.WGANGP,
    "optimizers that take turns": steps.Alternating,
    "PPO, several steps on a batch": published.PPO,
    "SAM by hand": steps.SamByHand,
    "SAM as an optimizer with two methods": steps.SamOptimizer,
    "gradients of two batches accumulated": steps.Accumulating,
    "a closure": steps.Closure,
    "LBFGS": steps.Lbfgs,
}
MIXED = '`precision="bf16-mixed"`'


def regularizer(cls: Any, beta: float) -> FisherRegularizer:
    more = {"manual_accumulation": 2} if cls is steps.Accumulating else {}
    return FisherRegularizer(beta, alpha=ALPHA, num_sub_batches=PARTS, start=0, **more)


def trained(cls: Any, beta: float | None = None, **options: Any) -> Any:
    module = cls()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        callbacks=[] if beta is None else [regularizer(cls, beta)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, loader(steps.batches()))
    return module.nets


def by_hand(cls: Any, beta: float, dtype: torch.dtype = torch.float64) -> Any:
    nets = seeded(cls.networks).to(dtype)
    cls.loop(nets, steps.batches(), beta)
    return nets


def identical(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def error(a: Any, b: Any) -> float:
    """Largest difference of a weight, relative to the largest entry of its tensor."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(((x - y).abs().max() / y.abs().max()).item() for x, y in pairs)


def row(cls: Any, tolerance: float, dtype: torch.dtype = torch.float64, **options: Any) -> list[str]:
    assert identical(trained(cls, 1e-30, **options), trained(cls, **options))
    found, wanted = trained(cls, BETA, **options), by_hand(cls, BETA, dtype)
    assert error(found, wanted) <= tolerance
    assert error(by_hand(cls, 0.0, dtype), wanted) > 1e-4
    return ["bit-identical", f"equal to {tolerance:.0e}".replace("e-0", "e-")]


@functools.cache
def rows() -> list[list[str]]:
    """``[set-up, β = 0, β > 0]``."""
    found = [[name, *row(cls, 1e-11 if cls is steps.Lbfgs else 1e-12)] for name, cls in SETUPS.items()]
    found.append([MIXED, *row(published.Mixed, 1e-6, torch.float32, precision="bf16-mixed")])
    # Checked where the processes are started: `tests/callbacks/multipass/manual/test_ddp.py`.
    return found + [[f"DDP, {count} processes", "-", "equal to 1e-12"] for count in (2, 4)]
