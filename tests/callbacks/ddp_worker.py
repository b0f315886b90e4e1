"""One of two gloo processes: ``python -m tests.callbacks.ddp_worker FOLDER``, started by test_regularizer_ddp.

Each rank trains on its half of every global batch, in float64; what it saw goes to ``FOLDER/rank{r}.pt``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils.data import TensorDataset

from lightning_fisher import FisherMonitor, FisherRegularizer
from tests.callbacks.tiny import Classifier, image_batches, loader, mlp, multi_step, seeded
from tests.reference.regularised_training import snapshot

WORLD = 2
BATCHES = image_batches([16] * 4)
EPOCHS = 3
MONITORED = TensorDataset(*image_batches([40], seed=5)[0])
MONITOR = {"num_subsets": 3, "subset_size": 8, "seed": 3}  # 3 subsets are not divisible by 2 ranks


class CountBuckets(Callback):
    """Counts gradient all-reduces through DDP's own communication hook, and keeps the weights of every step."""

    def __init__(self):
        self.buckets, self.optimizer_steps, self.states, self.penalties = 0, 0, [], []

    def on_train_start(self, trainer, pl_module):
        def hook(state, bucket):
            self.buckets += 1
            return allreduce_hook(state, bucket)

        trainer.strategy.model.register_comm_hook(None, hook)

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.optimizer_steps = trainer.global_step
        self.states.append(snapshot(pl_module))
        if "fisher/penalty" in trainer.callback_metrics:
            self.penalties.append(trainer.callback_metrics["fisher/penalty"].item())

    def result(self):
        return {
            "buckets": self.buckets,
            "optimizer_steps": self.optimizer_steps,
            "states": self.states,
            "penalties": self.penalties,
        }


class WithUnused(Classifier):
    """A parameter outside of the graph, which weight decay would shrink if it ever got a gradient."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.unused = nn.Parameter(torch.ones(5))


def fit(folder, rank, *callbacks, module=Classifier, ddp=None, **options):
    half = 16 // WORLD
    batches = [(x[rank * half :][:half], y[rank * half :][:half]) for x, y in BATCHES]
    trainer = Trainer(
        accelerator="cpu",
        devices=WORLD,
        strategy=DDPStrategy(process_group_backend="gloo", **ddp or {}),
        precision="64-true",
        max_epochs=EPOCHS,
        callbacks=list(callbacks),
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(module(seeded(mlp), scheduler=multi_step(1)), loader(batches))
    return trainer


def regularised(folder, rank, beta, **options):
    counter = CountBuckets()
    fit(folder, rank, FisherRegularizer(beta, num_sub_batches=8), counter, **options)
    return counter.result()


def plain(folder, rank):
    counter = CountBuckets()
    fit(folder, rank, counter)
    return counter.result()


def refused(folder, rank):
    """M is spread over the ranks; 5 parts can't be."""
    try:
        fit(folder, rank, FisherRegularizer(5.0, num_sub_batches=5))
    except Exception as error:
        return str(error)
    return None


def monitored(folder, rank):
    trainer = fit(folder, rank, FisherMonitor(MONITORED, **MONITOR))
    return {key: value.item() for key, value in trainer.callback_metrics.items() if key.startswith("gamma")}


def main(folder, rank):
    torch.set_num_threads(1)
    results = {
        "plain": plain(folder, rank),
        "beta 0": regularised(folder, rank, 0.0),
        "beta 5": regularised(folder, rank, 5.0),
        "beta 5, accumulate 2": regularised(folder, rank, 5.0, accumulate_grad_batches=2),
        "beta 5, unused": regularised(folder, rank, 5.0, module=WithUnused, ddp={"find_unused_parameters": True}),
        "beta 5, static graph": regularised(
            folder, rank, 5.0, ddp={"static_graph": True, "gradient_as_bucket_view": True}
        ),
        "monitor": monitored(folder, rank),
        "refused": refused(folder, rank),
    }
    torch.save(results, Path(folder) / f"rank{rank}.pt")


if __name__ == "__main__":
    import os

    main(sys.argv[1], int(os.environ["LOCAL_RANK"]))
