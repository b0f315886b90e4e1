"""One of two gloo processes of `test_regularizer_numbers_ddp`: each trains on its half of every batch, in float64."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import TensorDataset

from lightning_fisher import FisherMonitor, FisherRegularizer
from tests.callbacks.numbers_loop import BETA, M, batches, cliff
from tests.callbacks.tiny import image_batches, loader
from tests.reference.regularized_training import snapshot

STEEP = {1, 3}  # batches that explode on rank 0 only: their sixth sample does


class Record(Callback):
    def __init__(self):
        self.states, self.penalties, self.gammas = [], [], []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.states.append(snapshot(pl_module))
        self.penalties.append(trainer.callback_metrics["fisher/penalty"].item())

    def on_train_epoch_end(self, trainer, pl_module):
        self.gammas.append(trainer.callback_metrics["gamma"].item())


def monitored():
    """A nan in one sample: one rank meets it in its subsets, the other doesn't."""
    images, labels = image_batches([8], seed=5)[0]
    images[6] = float("nan")
    return FisherMonitor(TensorDataset(images, labels), num_subsets=2, subset_size=4, seed=3)


def main(rank, folder):
    torch.set_num_threads(1)
    record, regularizer = Record(), FisherRegularizer(BETA, num_sub_batches=M, start=0)
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=DDPStrategy(process_group_backend="gloo", find_unused_parameters=True),
        precision="64-true",
        max_epochs=1,
        callbacks=[regularizer, monitored(), record],
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    data = [(x.tensor_split(2)[rank], y.tensor_split(2)[rank]) for x, y in batches(STEEP)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(cliff(), loader(data))
    result = {
        "states": record.states,
        "penalties": record.penalties,
        "gammas": record.gammas,
        "left out": regularizer.left_out,
        "warnings": [str(warning.message) for warning in caught],
    }
    torch.save(result, Path(folder) / f"rank{rank}.pt")
