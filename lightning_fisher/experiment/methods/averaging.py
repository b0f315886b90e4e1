"""Stochastic weight averaging by Lightning's callback, with batch-norm statistics that belong to the average."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import update_bn

from lightning_fisher.arguments import require_number
from lightning_fisher.functional.evaluation.state.random_state import preserved_random_state
from lightning_fisher.module import ImageClassifier


class AveragedWeights(WeightAveraging):
    """The mean of the weights at the ends of epochs (Izmailov et al. 2018), on which everything is measured.

    Lightning's `WeightAveraging` holds the average and swaps it in; here it counts from ``begin`` on only, and the
    batch-norm statistics are computed anew by a pass over the training images, without augmentation
    (`torch.optim.swa_utils.update_bn`), before every validation and at the end. Learning rate and schedule stay those
    of the recipe; the authors train on at a constant one.

    Args:
        begin: From which part of the training on, 0 to 1.

    Raises:
        ValueError: If an argument doesn't fit.
    """

    def __init__(self, begin: float = 0.75) -> None:
        require_number("begin", begin, 0, 1)
        super().__init__(use_buffers=False)
        self.begin = float(begin)
        self._first = 0
        self._swapped = False

    @property
    def begun(self) -> bool:
        """Whether there is an average."""
        return self._average_model is not None and int(self._average_model.n_averaged) > 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the average."""
        if stage == "fit" and trainer.max_epochs is not None:
            self._first = min(int(self.begin * trainer.max_epochs), trainer.max_epochs - 1)
        super().setup(trainer, pl_module, stage)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """At the ends of epochs."""
        return epoch_idx is not None and epoch_idx >= self._first

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average, once there is one."""
        if self.begun and not trainer.sanity_checking:
            self._swap_models(pl_module)
            self._swapped = True
            refresh(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train on with the weights as they are."""
        if self._swapped:
            self._swap_models(pl_module)
            self._swapped = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The network is the average from now on."""
        if self.begun:
            super().on_train_end(trainer, pl_module)
            refresh(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """The average is the network of the checkpoint, once there is one."""
        if not self.begun:
            return
        if not self._swapped:  # with statistics of its own
            self._swap_models(pl_module)
            refresh(trainer, pl_module)
            self._swap_models(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)


def refresh(trainer: Trainer, module: LightningModule) -> None:
    """Batch-norm statistics of the weights as they are, from the training images; random numbers don't move on."""
    assert isinstance(module, ImageClassifier)
    data: Any = trainer.datamodule  # type: ignore[attr-defined]

    def images() -> Iterator[Tensor]:
        for batch in data.train_dataloader():  # one of its own: that of the training goes on where it is
            yield trainer.strategy.batch_to_device(batch, module.device)[0]  # normalizes it too

    with preserved_random_state({module.device}):
        update_bn(images(), module.net)
