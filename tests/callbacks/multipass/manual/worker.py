"""A gloo process of `test_ddp`: each trains on its rows of every batch, in float64."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

from lightning_fisher import FisherRegularizer
from tests.callbacks.multipass.manual import steps
from tests.callbacks.multipass.manual.loops import ALPHA, PARTS
from tests.callbacks.tiny import loader

NAMES = ("Gan", "ToggledGan", "SamByHand", "Accumulating", "Closure")
BETA = 20.0


def main(rank, folder, world):
    torch.set_num_threads(1)
    states = {}
    for name in NAMES:
        module = getattr(steps, name)()
        more = {"manual_accumulation": 2} if name == "Accumulating" else {}
        trainer = Trainer(
            accelerator="cpu",
            devices=int(world),
            strategy=DDPStrategy(process_group_backend="gloo", find_unused_parameters=True),
            max_epochs=1,
            callbacks=[FisherRegularizer(BETA, alpha=ALPHA, num_sub_batches=PARTS, start=0, **more)],
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        data = [tuple(t.tensor_split(int(world))[rank] for t in batch) for batch in steps.batches()]
        trainer.fit(module, loader(data))
        states[name] = [p.detach() for p in module.nets.parameters()]
    torch.save(states, Path(folder) / f"rank{rank}.pt")
