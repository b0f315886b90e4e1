"""A callback that records the gradient norm of every training sample during training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, default_collate

from lightning_fisher.arguments import require_integer
from lightning_fisher.functional import log_gradient_norms
from lightning_fisher.functional.evaluation.differentiable import differentiable_evaluation
from lightning_fisher.functional.evaluation.state.random_state import preserved_random_state
from lightning_fisher.label_errors.scores import LabelScores


class LabelErrorRecorder(Callback):
    """Record gradient norm, loss and probabilities of every sample, at the end of training epochs.

    A sample whose label disagrees with those of similar samples keeps a large gradient until it is memorized. Weights,
    buffers, gradients, modes and the random state stay as they are: the training is the one without the callback.

    Cost: per recorded epoch one pass over the dataset, each about a forward and a backward pass (per-sample norms,
    `functional.log_gradient_norms`), and one forward pass.

    Args:
        dataset: Map-style dataset of un-augmented training samples ``(input, label)``, labels whole numbers. It is read
            in order: position j is row j of the result.
        every_n_epochs: Record at every n-th epoch only.
        batch_size: Samples that are loaded and evaluated at a time.
        chunk_size: Samples whose gradients are computed at a time.
        collate_fn: List of samples → ``(inputs, labels)``.
        select_module: LightningModule → the module that maps inputs to logits ``[N, K]``; ``None``: itself.

    Raises:
        ValueError: If an argument doesn't fit; in `scores` before anything was recorded.
        RuntimeError: If training runs in several processes.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from lightning_fisher.label_errors import LabelErrorRecorder
        >>> samples = TensorDataset(torch.randn(200, 3), torch.randint(5, (200,)))
        >>> recorder = LabelErrorRecorder(samples, every_n_epochs=2)
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        every_n_epochs: int = 1,
        batch_size: int = 250,
        chunk_size: int = 50,
        collate_fn: Callable[[list[Any]], Any] = default_collate,
        select_module: Callable[[LightningModule], nn.Module] | None = None,
    ) -> None:
        for name, value in (
            ("every_n_epochs", every_n_epochs),
            ("batch_size", batch_size),
            ("chunk_size", chunk_size),
        ):
            require_integer(name, value, 1)
        self.dataset = dataset
        self.every_n_epochs = every_n_epochs
        self.batch_size = batch_size
        self.chunk_size = chunk_size
        self.collate_fn = collate_fn
        self.select_module = select_module
        self._labels = torch.empty(0, dtype=torch.long)
        self._log_norms: list[Tensor] = []
        self._losses: list[Tensor] = []
        self._probabilities = torch.empty(0)  # their weighted mean over time
        self._learning_rates: list[float] = []
        self._rate = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse several processes."""
        if trainer.world_size > 1:
            raise RuntimeError(
                f"LabelErrorRecorder records in one process, but the Trainer has {trainer.world_size}: set devices=1."
            )

    def state_dict(self) -> dict[str, Any]:
        """What was recorded, so that a resumed training goes on with it."""
        return {
            "labels": self._labels,
            "log_norms": self._log_norms,
            "losses": self._losses,
            "probabilities": self._probabilities,
            "learning_rates": self._learning_rates,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self._labels = state_dict["labels"]
        self._log_norms, self._losses = list(state_dict["log_norms"]), list(state_dict["losses"])
        self._probabilities, self._learning_rates = state_dict["probabilities"], list(state_dict["learning_rates"])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the learning rate: at the end of an epoch it may be the next one's."""
        self._rate = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record."""
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            module = pl_module if self.select_module is None else self.select_module(pl_module)
            self.record(module, self._rate, pl_module.device)

    def record(self, module: nn.Module, learning_rate: float, device: torch.device | str = "cpu") -> None:
        """Record one time: for training loops without Lightning.

        Args:
            module: The network, in any mode; it stays as it is.
            learning_rate: η of now.
            device: Where the network is.

        Raises:
            ValueError: If the batches are no ``(inputs, labels)`` or the outputs no logits ``[N, K]``.
        """
        with preserved_random_state({torch.device(device)}):  # also what the data loader draws
            self._record(module, learning_rate, torch.device(device))

    def _record(self, module: nn.Module, learning_rate: float, device: torch.device) -> None:
        labels, log_norms, losses, probabilities = [], [], [], []
        loader = DataLoader(self.dataset, batch_size=self.batch_size, collate_fn=self.collate_fn)
        for batch in loader:
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise ValueError(
                    f"Expected batches of (inputs, labels), but got {type(batch).__name__}: give `collate_fn`."
                )
            inputs, targets = move_data_to_device(tuple(batch), device)
            with differentiable_evaluation(module), torch.no_grad():
                logits = module(inputs)
            if not isinstance(logits, Tensor) or logits.shape[:-1] != targets.shape or targets.ndim != 1:
                raise ValueError(
                    f"Expected logits [N, K] for labels [N], but got {_shape(logits)} for {_shape(targets)}: give "
                    "`select_module`."
                )
            norms = log_gradient_norms(module, inputs, targets, chunk_size=self.chunk_size)
            labels.append(targets.cpu())
            log_norms.append(norms.cpu())
            losses.append(F.cross_entropy(logits.double(), targets, reduction="none").cpu())
            probabilities.append(logits.double().softmax(1).cpu())
        self._labels = torch.cat(labels)
        self._log_norms.append(torch.cat(log_norms))
        self._losses.append(torch.cat(losses))
        self._learning_rates.append(learning_rate)
        self._add_probabilities(torch.cat(probabilities), learning_rate)

    def _add_probabilities(self, now: Tensor, learning_rate: float) -> None:
        """Update their weighted mean."""
        total = sum(self._learning_rates)
        if len(self._learning_rates) == 1:
            self._probabilities = now
        elif total > 0:
            self._probabilities = self._probabilities + (now - self._probabilities) * (learning_rate / total)
        else:
            self._probabilities = self._probabilities + (now - self._probabilities) / len(self._learning_rates)

    def scores(self) -> LabelScores:
        """What was recorded so far.

        Raises:
            ValueError: If nothing was.
        """
        if not self._log_norms:
            raise ValueError(f"Expected a training of at least {self.every_n_epochs} epochs, but nothing is recorded.")
        return LabelScores(
            self._labels,
            torch.stack(self._log_norms),
            torch.stack(self._losses),
            self._probabilities,
            torch.tensor(self._learning_rates),
        )


def _shape(value: Any) -> str:
    return f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
