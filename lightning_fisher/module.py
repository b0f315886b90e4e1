"""The one LightningModule: an image classifier with any optimizer and scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import MultiStepLR, ReduceLROnPlateau
from torchmetrics import Metric

from lightning_fisher.data.images import IGNORED_LABEL


def milestone_lr(optimizer: Optimizer, *, milestones: Sequence[float], gamma: float, max_epochs: int) -> MultiStepLR:
    """Step decay at fractions of the training: a shorter run keeps the shape of its schedule.

    Args:
        optimizer: the optimizer whose learning rate decays.
        milestones: ascending fractions of the training, between 0 and 1: 0.5 of 200 epochs is epoch 100. Rounded to
            whole epochs, at the earliest the second.
        gamma: the factor at each milestone.
        max_epochs: the number of epochs of the training.

    Returns:
        The scheduler, to be stepped every epoch.

    Raises:
        ValueError: if a milestone is not strictly between 0 and 1 or they do not ascend.
    """
    fractions = list(milestones)
    if not all(0 < f < 1 for f in fractions) or fractions != sorted(fractions):
        raise ValueError(
            "Expected argument `milestones` to be ascending fractions of the training between 0 and 1, "
            f"but got {fractions}."
        )
    return MultiStepLR(optimizer, [max(1, round(f * max_epochs)) for f in fractions], gamma=gamma)


class SampleMean(Metric):
    """The mean of a per-sample value over all samples of all processes, some of them left out.

    In torchmetrics 1.9 `MeanMetric` either removes `nan`, which would hide a diverged network, or ignores weights.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, values: Tensor, counted: Tensor) -> None:
        """Add the values `[B]` of those samples for which `counted`, bool `[B]`, is true."""
        # Not in place: after `Trainer.validate` the states are inference tensors, which must stay as they are.
        self.total = self.total + torch.where(counted, values, 0.0).sum().to(self.total.dtype)
        self.count = self.count + counted.sum()

    def compute(self) -> Tensor:
        """The mean, a scalar."""
        return self.total / self.count


class CalibrationError(Metric):
    """The expected calibration error of predictions, in per cent: ``Σ_b n_b/N |accuracy_b − confidence_b|``.

    Over 15 bins of equal width of the largest softmax probability (Guo et al. 2017); sums by bin, not all samples as in
    torchmetrics 1.9, whose value it is.
    """

    full_state_update = False
    counts: Tensor
    correct: Tensor
    confidence: Tensor

    def __init__(self, num_bins: int = 15) -> None:
        super().__init__()
        for name in ("counts", "correct", "confidence"):
            self.add_state(name, torch.zeros(num_bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits `[B, K]` and labels `[B]`."""
        confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
        bins = (confidence * len(self.counts)).ceil().long().sub(1).clamp(0, len(self.counts) - 1)
        correct = (predicted == labels).double()
        # Not in place: after `Trainer.validate` the states are inference tensors, which must stay as they are.
        self.counts = self.counts + torch.zeros_like(self.counts).index_add(0, bins, torch.ones_like(confidence))
        self.correct = self.correct + torch.zeros_like(self.correct).index_add(0, bins, correct)
        self.confidence = self.confidence + torch.zeros_like(self.confidence).index_add(0, bins, confidence)

    def compute(self) -> Tensor:
        """The error, a scalar."""
        return 100.0 * (self.correct - self.confidence).abs().sum() / self.counts.sum()


TOP = 5  # predictions of which one may be right

Criterion = Callable[["ImageClassifier", Tensor, Tensor], tuple[Tensor, Tensor]]


def cross_entropy(module: ImageClassifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits `[B, K]` and mean cross-entropy of a batch, with the module's label smoothing."""
    logits = module(images)
    return logits, F.cross_entropy(logits, labels, label_smoothing=module.label_smoothing)


class ImageClassifier(L.LightningModule):
    """A network trained with cross-entropy.

    Logged, errors in per cent:

    - training, mean over the epoch's batches as they were trained on: `train_loss`, `train_error`;
    - validation: `val_loss`, `val_error`, `val_error_top5`;
    - test, first data loader: `test_loss`, `test_error`, `test_error_top5`, `test_calibration_error`; second data
      loader, the training images without augmentation: `train_eval_loss`, `train_eval_error`, `train_eval_error_top5`.

    Losses but `train_loss` are without label smoothing. There is no top-5 error with at most 5 classes: it would be 0.

    Args:
        net: the network, images `[B, C, H, W]` to logits `[B, K]`.
        optimizer: makes the optimizer from the parameters, for example `partial(torch.optim.SGD, lr=0.1)`.
        scheduler: makes the scheduler from the optimizer; `None` for a constant learning rate.
        scheduler_interval: `"epoch"` or `"step"`: when the scheduler steps.
        scheduler_monitor: the logged value that `ReduceLROnPlateau` watches; other schedulers need none.
        label_smoothing: the share of the label spread over all classes in training, 0 to 1.
        manual_optimization: whether `training_step` steps the optimizer and the scheduler itself
            (`automatic_optimization = False`): the same weights, bit for bit. The Trainer then takes neither
            `gradient_clip_val` nor `accumulate_grad_batches`.
        channels_last: whether images and weights are stored channels last (`torch.channels_last`): the same numbers
            up to rounding, faster convolutions on most hardware.
        compile: whether training steps run through `torch.compile`: the same numbers up to rounding, faster steps, a
            slower start. Checkpoints are those of the network as it is; evaluation runs eagerly, and so do the extra
            passes of callbacks, but those in the Trainer's precision.

    Attributes:
        criterion: `(module, images, labels) → (logits, loss)` of training; the cross-entropy, unless replaced.

    Raises:
        ValueError: if `scheduler_interval` or `label_smoothing` is not as described.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], Any] | None = None,
        *,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        scheduler_monitor: str = "train_loss",
        label_smoothing: float = 0.0,
        channels_last: bool = False,
        compile: bool = False,
        manual_optimization: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = not manual_optimization
        if scheduler_interval not in ("epoch", "step"):
            raise ValueError(
                f"Expected argument `scheduler_interval` to be 'epoch' or 'step', but got {scheduler_interval!r}."
            )
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"Expected argument `label_smoothing` to be from 0 to 1, but got {label_smoothing}.")
        self.net = net.to(memory_format=torch.channels_last) if channels_last else net
        if compile:
            # In place, so that state_dict keeps its names. A graph for every batch size, whatever was seen before: a
            # run that continues rounds as one that was never interrupted.
            self.net.compile(dynamic=False)
        self.compile_steps = compile
        self.channels_last = channels_last
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.scheduler_interval = scheduler_interval
        self.scheduler_monitor = scheduler_monitor
        self.label_smoothing = label_smoothing
        self.criterion: Criterion = cross_entropy
        self.evaluation = nn.ModuleDict(
            {
                f"{prefix}_{quantity}": SampleMean()
                for prefix in ("val", "test", "train_eval")
                for quantity in ("loss", "error", "error_top5")
            }
        )
        self.calibration = CalibrationError()

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, K]` of images `[B, C, H, W]`."""
        return self.net(images.contiguous(memory_format=torch.channels_last) if self.channels_last else images)

    def eagerly(self) -> AbstractContextManager[None]:
        """A context in which the network doesn't run through `torch.compile`."""
        return torch.compiler.set_stance("force_eager") if self.compile_steps else nullcontext()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The mean cross-entropy of a batch, with label smoothing."""
        images, labels = batch
        logits, loss = self.criterion(self, images, labels)
        error = 100.0 * (logits.argmax(dim=1) != labels).float().mean()
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": True, "batch_size": len(labels)}
        self.log("train_loss", loss.detach(), prog_bar=True, **options)
        self.log("train_error", error, **options)
        if not self.automatic_optimization:
            self._step(loss)
        return loss

    def _step(self, loss: Tensor) -> None:
        """What Lightning does in automatic optimization, in its order."""
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        if self.scheduler_interval == "step" or (self.trainer.is_last_batch and not self._watches()):
            self._step_scheduler()

    def on_train_epoch_end(self) -> None:
        """Step a scheduler that watches a logged value, in manual optimization."""
        if not self.automatic_optimization and self.scheduler_interval == "epoch" and self._watches():
            self._step_scheduler()

    def _watches(self) -> bool:
        return isinstance(self.lr_schedulers(), ReduceLROnPlateau)

    def _step_scheduler(self) -> None:
        scheduler: Any = self.lr_schedulers()
        if scheduler is not None:
            watched = self.trainer.callback_metrics[self.scheduler_monitor] if self._watches() else None
            self.lr_scheduler_step(scheduler, watched)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and errors of the validation images."""
        self._evaluate("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss and errors of the test images (loader 0) and the training images (loader 1)."""
        logits = self._evaluate("train_eval" if dataloader_idx == 1 else "test", batch)
        if dataloader_idx == 0:
            self._calibrate(logits, batch[1])

    def _evaluate(self, prefix: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        with self.eagerly():  # graphs of sizes of their own would be compiled for a pass
            logits: Tensor = self(images)
        counted = labels != IGNORED_LABEL
        top = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
        correct = top == labels[:, None]
        values = {
            "loss": F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED_LABEL),
            "error": 100.0 * ~correct[:, 0],
        }
        if logits.shape[1] > TOP:
            values["error_top5"] = 100.0 * ~correct.any(dim=1)
        for quantity, value in values.items():
            metric = self.evaluation[f"{prefix}_{quantity}"]
            assert isinstance(metric, SampleMean)
            metric.update(value, counted)
            self.log(
                f"{prefix}_{quantity}",
                metric,
                on_step=False,
                on_epoch=True,
                prog_bar=prefix == "val" and quantity == "error",
                add_dataloader_idx=False,
            )
        return logits

    def _calibrate(self, logits: Tensor, labels: Tensor) -> None:
        counted = labels != IGNORED_LABEL
        self.calibration.update(logits[counted], labels[counted])
        self.log("test_calibration_error", self.calibration, on_step=False, on_epoch=True, add_dataloader_idx=False)

    def configure_optimizers(self) -> Any:
        """The optimizer over the parameters that require gradients, and its scheduler."""
        optimizer = self.make_optimizer([p for p in self.net.parameters() if p.requires_grad])
        if self.make_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": self.make_scheduler(optimizer),
                "interval": self.scheduler_interval,
                "monitor": self.scheduler_monitor,
            },
        }
