"""What every rank trains in the tests of this folder: its share of the same global batches, in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils.data import TensorDataset

from lightning_fisher import FisherMonitor, FisherRegularizer
from lightning_fisher.callbacks import RandomState
from tests.callbacks.tiny import Classifier, image_batches, loader, mlp, multi_step, seeded
from tests.reference.regularized_training import snapshot

EPOCHS = 2
M = 8
BETA = 5.0
BATCHES = image_batches([16] * 4)
UNEVEN = [*BATCHES[:3], image_batches([11], seed=2)[0]]  # the last one: 6 and 5 samples, or 3, 3, 3 and 2
MONITORED = TensorDataset(*image_batches([40], seed=5)[0])
MONITOR: dict[str, Any] = {"num_subsets": 5, "subset_size": 8, "seed": 3}  # 5 subsets: no multiple of 2 or 4 ranks

Batch = tuple[Tensor, Tensor]


def normalized_net() -> nn.Module:
    """Batch-norm sees a process's own samples only."""
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def share(batch: Batch, rank: int, world: int) -> Batch:
    """The consecutive rows of one rank; their number may differ by one between ranks."""
    x, y = batch
    return x.tensor_split(world)[rank], y.tensor_split(world)[rank]


@dataclass(frozen=True)
class Fit:
    """One training run: its network, data and options; `accumulate` and `clip` mean the same to the reference."""

    beta: float | None = BETA
    form: dict[str, Any] = field(default_factory=dict)  # further arguments of the regularizer
    num_sub_batches: int = M
    net: Callable[[], nn.Module] = mlp
    unused: bool = False
    batches: tuple[Batch, ...] = tuple(BATCHES)
    accumulate: int = 1
    clip: float | None = None
    ddp: dict[str, Any] = field(default_factory=dict)


STATIC = {"static_graph": True, "gradient_as_bucket_view": True}
FITS = {
    "plain": Fit(beta=None),
    "beta 0": Fit(beta=0.0),
    "beta 5": Fit(),
    "accumulate": Fit(accumulate=2),
    "accumulate 3 of 4": Fit(accumulate=3),  # the last batch of an epoch steps alone
    "clip": Fit(clip=0.05),
    "accumulate, clip": Fit(accumulate=2, clip=0.05),
    "unused": Fit(unused=True, ddp={"find_unused_parameters": True}),
    "unused, accumulate, clip": Fit(unused=True, accumulate=2, clip=0.05, ddp={"find_unused_parameters": True}),
    "static graph": Fit(ddp=STATIC),
    "static graph, clip": Fit(clip=0.05, ddp=STATIC),
    "many buckets": Fit(ddp={"bucket_cap_mb": 1e-4}),
    "shared gradient": Fit(form={"gradient": "shared"}),
    "shared gradient, unused, static graph": Fit(form={"gradient": "shared"}, unused=True, ddp=STATIC),
    "short last batch": Fit(batches=(*BATCHES[:3], *image_batches([8], seed=2))),
    "every second step": Fit(form={"every_n_steps": 2}),
    "half of the sub-batches": Fit(form={"perturbed": 4}),
    "batch-norm": Fit(net=normalized_net, num_sub_batches=4),
    "uneven": Fit(batches=tuple(UNEVEN)),
    "uneven, accumulate, clip": Fit(batches=tuple(UNEVEN), accumulate=2, clip=0.05),
}


class Record(Callback):
    """Weights after every batch, logged penalties, and the gradient values that the ranks have exchanged by then.

    Counted in DDP's own communication hook, and again at every `all_reduce`, so that one beside DDP shows too.
    """

    def __init__(self) -> None:
        self.hooked: list[int] = []
        self.reduced: list[int] = []
        self.steps: list[int] = []
        self.states: list[dict[str, Tensor]] = []
        self.penalties: list[float] = []
        self._hooked = self._reduced = 0
        self._all_reduce = torch.distributed.all_reduce

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def hook(state, bucket):  # DDP refuses annotations other than its own
            self._hooked += bucket.buffer().numel()
            return allreduce_hook(state, bucket)

        @functools.wraps(self._all_reduce)
        def all_reduce(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._reduced += tensor.numel() if tensor.numel() > 1 else 0  # a logged number is no gradient
            return self._all_reduce(tensor, *args, **kwargs)

        trainer.strategy.model.register_comm_hook(None, hook)  # type: ignore[union-attr, operator]
        torch.distributed.all_reduce = all_reduce

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.hooked.append(self._hooked)
        self.reduced.append(self._reduced)
        self.steps.append(trainer.global_step)
        self.states.append(snapshot(pl_module))
        if "fisher/penalty" in trainer.callback_metrics:
            self.penalties.append(trainer.callback_metrics["fisher/penalty"].item())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.distributed.all_reduce = self._all_reduce

    def result(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if not k.startswith("_")}


class Untrainable(Classifier):
    """Is refused before its first step."""

    def configure_model(self) -> None:
        """What `ModelParallelStrategy` asks for."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        raise AssertionError("a step was taken")


class WithUnused(Classifier):
    """A parameter outside of the graph, which weight decay would shrink if it ever got a gradient."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.unused = nn.Parameter(torch.ones(5))


def trainer_of(
    world: int, folder: Path, *callbacks: Callback, ddp: dict[str, Any] | None = None, **options: Any
) -> Trainer:
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": world,
        "strategy": DDPStrategy(process_group_backend="gloo", **ddp or {}),
        "precision": "64-true",
        "max_epochs": EPOCHS,
        "use_distributed_sampler": False,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return Trainer(callbacks=list(callbacks), **quiet | options)


def train(rank: int, world: int, folder: Path, fit: Fit) -> dict[str, Any]:
    record = Record()
    callbacks: list[Callback] = [record]
    if fit.beta is not None:
        callbacks.insert(0, FisherRegularizer(fit.beta, num_sub_batches=fit.num_sub_batches, **fit.form))
    trainer = trainer_of(
        world,
        folder,
        *callbacks,
        ddp=fit.ddp,
        accumulate_grad_batches=fit.accumulate,
        gradient_clip_val=fit.clip,
    )
    module = (WithUnused if fit.unused else Classifier)(seeded(fit.net), scheduler=multi_step(1))
    trainer.fit(module, loader([share(batch, rank, world) for batch in fit.batches]))
    return record.result()


def monitor(world: int, folder: Path) -> dict[str, float]:
    trainer = trainer_of(world, folder, FisherMonitor(MONITORED, **MONITOR))
    trainer.fit(Classifier(seeded(mlp), scheduler=multi_step(1)), loader(BATCHES))
    return {key: value.item() for key, value in trainer.callback_metrics.items() if key.startswith("gamma")}


def dropout_net() -> nn.Module:
    """Draws random numbers in every pass."""
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def resumed(rank: int, world: int, folder: Path) -> dict[str, Any]:
    """Every rank draws its own dropout masks; trained whole, and continued from the end of the first epoch."""
    checkpoint = folder / "checkpoints" / "epoch=0-step=4.ckpt"
    states = {}
    for name in ("whole", "continued"):
        torch.manual_seed(rank if name == "whole" else 100)
        save = ModelCheckpoint(checkpoint.parent, save_top_k=-1, save_on_train_epoch_end=True)
        callbacks = [RandomState(), FisherRegularizer(BETA, num_sub_batches=4), save]
        trainer = trainer_of(world, folder, *callbacks, enable_checkpointing=True)
        module = Classifier(seeded(dropout_net), scheduler=multi_step(1))
        batches = [share(batch, rank, world) for batch in BATCHES]
        module.double()  # Lightning converts it after it has loaded the checkpoint: rounded to float32 until then
        trainer.fit(module, loader(batches), ckpt_path=None if name == "whole" else checkpoint)
        states[name] = snapshot(module)
    return states


def refusals(rank: int, world: int, folder: Path) -> dict[str, str]:
    """What the set-ups that cannot work are answered with, before any step."""

    def refused(*callbacks: Callback, batches: int = len(BATCHES), **options: Any) -> str:
        module = Untrainable(seeded(mlp))
        try:
            trainer = trainer_of(world, folder, *callbacks, **options)
            trainer.fit(module, loader([share(batch, rank, world) for batch in BATCHES[:batches]]))
        except Exception as error:
            return str(error)
        return "nothing was raised"

    last = rank == world - 1
    return {
        "M": refused(FisherRegularizer(5.0, num_sub_batches=2 * world + 1)),
        "k": refused(FisherRegularizer(5.0, num_sub_batches=2 * world, perturbed=1)),
        "batches": refused(FisherRegularizer(5.0, num_sub_batches=world), batches=len(BATCHES) - last),
        "sharded": refused(FisherRegularizer(5.0), strategy=ModelParallelStrategy(), precision="32-true"),
        "sharded monitor": refused(FisherMonitor(MONITORED), strategy=ModelParallelStrategy(), precision="32-true"),
    }


def main(rank: int, world: int, folder: Path, names: list[str]) -> None:
    """Everything that one start of the processes is for; what rank r saw goes to ``folder/rank{r}.pt``."""
    results: dict[str, Any] = {name: train(rank, world, folder, FITS[name]) for name in names}
    results["monitor"] = monitor(world, folder)
    results["resumed"] = resumed(rank, world, folder)
    results["refusals"] = refusals(rank, world, folder)
    torch.save(results, folder / f"rank{rank}.pt")
