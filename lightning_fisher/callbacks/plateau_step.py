"""Do not lose the plateau scheduler's step when a run is resumed from an end-of-epoch checkpoint."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

STATE_KEY = "lightning_fisher.plateau_step"


class PlateauStep(Callback):
    """Carry the pending step of ``ReduceLROnPlateau`` through a checkpoint.

    Lightning writes end-of-epoch checkpoints *before* it steps a plateau scheduler with that epoch's metric,
    and a resumed run starts with the next epoch: the step is lost, and the learning rate drops an epoch
    later than in an uninterrupted run. This callback stores the metric in the checkpoint and takes the step
    when the training resumes. Schedulers of another kind, and those stepped per batch, need nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pending: dict[str, float] = {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the metric each plateau scheduler is about to be stepped with."""
        if not pl_module.automatic_optimization:  # the module steps its scheduler itself
            return
        progress = vars(trainer.fit_loop.epoch_progress.current)
        if progress["processed"] != progress["completed"] + 1:  # not inside `on_train_epoch_end`
            return
        pending = {}
        for index, config in enumerate(trainer.lr_scheduler_configs):
            due = config.interval == "epoch" and (trainer.current_epoch + 1) % config.frequency == 0
            if config.reduce_on_plateau and due and config.monitor in trainer.callback_metrics:
                pending[str(index)] = float(trainer.callback_metrics[config.monitor])
        checkpoint[STATE_KEY] = pending

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the metrics until the schedulers are restored."""
        self._pending = dict(checkpoint.get(STATE_KEY, {}))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the step that the interrupted run had still to take."""
        for index, metric in self._pending.items():
            pl_module.lr_scheduler_step(trainer.lr_scheduler_configs[int(index)].scheduler, metric)
        self._pending = {}
