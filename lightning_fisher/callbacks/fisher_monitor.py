"""γ̂ during training: a Lightning callback around the metrics (Eq. 6)."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate
from torchmetrics import Metric, MetricCollection
from tqdm import tqdm

from lightning_fisher.arguments import is_integer
from lightning_fisher.callbacks.requirements import require_whole_weights
from lightning_fisher.exceptions import first_line
from lightning_fisher.functional.evaluation.state.random_state import preserved_random_state
from lightning_fisher.metrics import FisherMetric

DatasetSource = Dataset | Callable[[], Dataset]


class FisherMonitor(Callback):
    r"""Measure ``γ̂(w) = 1/T Σ_t ln|ξ^t|`` (Eq. 6), or other metrics, at the end of validation and log them.

    ``ξ^t`` is the Gram matrix of the per-sample gradients of subset t: N′ distinct training samples, *not augmented*.
    The subsets are the same every time, so that the curve shows the network and not the draw. Without a validation loop
    it measures at the end of training epochs. Weights, buffers, gradients, modes and the random state stay as they are.

    Compare values at equal N′ only. Cost: T Gram matrices, each about one forward and backward pass of N′ samples;
    under DDP the T subsets are spread over the processes.

    Args:
        dataset: Map-style dataset of un-augmented training samples ``(input, target)``, or a function that returns it.
            ``None``: `metric_dataset()` of the Trainer's datamodule if it has one, else the training dataset as it is.
        num_subsets: T.
        subset_size: N′. Where it is the whole dataset, one subset is measured, and its spread is ``nan``.
        every_n_validations: Measure at every n-th validation only.
        seed: Of the subsets; independent of the training's.
        metrics: What to measure: a metric or collection whose ``update`` takes ``(module, inputs, targets)``; ``None``:
            `FisherMetric` with its defaults.
        collate_fn: List of samples → ``(inputs, targets)``.
        select_module: LightningModule → the module that maps inputs to outputs; ``None``: itself.

    Attributes:
        last: Values of the last measurement, by name, in full precision.
        seconds: Time spent measuring so far, in seconds.

    Raises:
        ValueError: If an argument doesn't fit; when training starts, if the dataset has fewer than N′ samples or two of
            them can't be measured.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from lightning_fisher import FisherMonitor
        >>> images, labels = torch.randn(500, 3, 8, 8), torch.randint(10, (500,))
        >>> monitor = FisherMonitor(TensorDataset(images, labels), num_subsets=5, subset_size=50)
    """

    def __init__(
        self,
        dataset: DatasetSource | None = None,
        *,
        num_subsets: int = 10,
        subset_size: int = 100,
        every_n_validations: int = 1,
        seed: int = 0,
        metrics: Metric | MetricCollection | None = None,
        collate_fn: Callable[[list[Any]], Any] = default_collate,
        select_module: Callable[[LightningModule], nn.Module] | None = None,
    ) -> None:
        for name, value in (
            ("num_subsets", num_subsets),
            ("subset_size", subset_size),
            ("every_n_validations", every_n_validations),
        ):
            if not is_integer(value) or value < 1:
                raise ValueError(f"Expected argument `{name}` to be a positive integer, but got {value!r}.")
        if not is_integer(seed):
            raise ValueError(f"Expected argument `seed` to be an integer, but got {seed!r}.")
        self.dataset = dataset
        self.num_subsets = num_subsets
        self.subset_size = subset_size
        self.every_n_validations = every_n_validations
        self.seed = seed
        self.metrics = copy.deepcopy(metrics) if metrics is not None else FisherMetric()
        self.collate_fn = collate_fn
        self.select_module = select_module
        self.last: dict[str, float] = {}
        self.seconds = 0.0
        self._validations = 0
        self._resolved: Any = None

    def state_dict(self) -> dict[str, Any]:
        """Validations counted and seconds spent, so that a resumed run measures at the same epochs."""
        return {"validations": self._validations, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self._validations, self.seconds = state_dict["validations"], state_dict["seconds"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse strategies under which no process holds all weights."""
        require_whole_weights(trainer, "FisherMonitor", "differentiate by")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a dataset that is too small before training starts."""
        self._resolved = None
        if self._has_dataset(trainer):
            self._samples(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what can't be measured, now that the training dataset is known."""
        self._rehearse(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and log."""
        if trainer.sanity_checking or (trainer.state.fn != TrainerFn.FITTING and not self._has_dataset(trainer)):
            return
        self._validations += 1
        if self._validations % self.every_n_validations == 0:
            self._measure_and_log(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same where there is no validation."""
        if not trainer.enable_validation:
            self.on_validation_epoch_end(trainer, pl_module)

    def _measure_and_log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = self.measure(trainer, pl_module)
        self.last = {name: float(value) for name, value in values.items()}
        # Equal on all ranks already; their mean is asked for so that Lightning needn't warn.
        pl_module.log_dict(
            values,
            on_step=False,
            on_epoch=True,
            sync_dist=trainer.world_size > 1,
            batch_size=1,
            add_dataloader_idx=False,
        )

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        """Measure now, on all ranks together.

        Args:
            trainer: Says which rank this is.
            pl_module: The module.

        Returns:
            What the metrics compute, by name; equal on all ranks.
        """
        started = time.perf_counter()
        metrics = self.metrics.to(pl_module.device)
        metrics.reset()
        # Lightning validates in inference mode, whose tensors know no gradients.
        with torch.inference_mode(False), torch.enable_grad():
            for samples in self._progress(trainer):
                self._update(metrics, pl_module, samples)
            values = metrics.compute()
        metrics.reset()
        self.seconds += time.perf_counter() - started
        return values if isinstance(values, dict) else {type(metrics).__name__: values}

    def _rehearse(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure two samples and forget it: what fails would fail after the first epoch.

        Raises:
            ValueError: In one line, with the remedies.
        """
        dataset = self._samples(trainer)
        few = self.subsets(len(dataset))[0][:2]
        metrics = copy.deepcopy(self.metrics).to(pl_module.device)
        try:
            with (
                preserved_random_state({pl_module.device}),
                warnings.catch_warnings(),
                torch.inference_mode(False),
                torch.enable_grad(),
            ):
                warnings.simplefilter("ignore")
                self._update(metrics, pl_module, [dataset[i] for i in few])
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(
                f"FisherMonitor can't measure {type(pl_module).__name__} on its samples ({first_line(error)}); give "
                "`collate_fn`: samples → (inputs, targets), `select_module`: the module that maps these inputs to "
                "outputs with the samples in dimension 0, or `metrics` with another `loss_fn`."
            ) from error

    def _update(self, metrics: Metric | MetricCollection, pl_module: LightningModule, samples: list[Any]) -> None:
        module = pl_module if self.select_module is None else self.select_module(pl_module)
        pair = self.collate_fn(samples)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"`collate_fn` gave {type(pair).__name__}, not (inputs, targets)")
        inputs, targets = move_data_to_device(tuple(pair), pl_module.device)
        metrics.update(module, inputs, targets)

    def _progress(self, trainer: Trainer) -> Iterator[list[Any]]:
        """This rank's subsets, with a progress bar when they take long."""
        dataset = self._samples(trainer)
        mine = self.subsets(len(dataset))[trainer.global_rank :: trainer.world_size]
        hidden = True if trainer.global_rank != 0 else None  # None: shown on a terminal only
        bar = tqdm(mine, desc="Fisher metrics", unit="subset", leave=False, delay=3, disable=hidden)
        for indices in bar:
            yield [dataset[i] for i in indices]

    def subsets(self, size: int) -> list[list[int]]:
        """The T subsets of ``size`` samples: N′ distinct indices each, the same for the same seed.

        Where N′ is ``size`` there is only one subset: T copies of it would show no spread.
        """
        generator = torch.Generator().manual_seed(self.seed)
        if self.subset_size == size:
            return [torch.randperm(size, generator=generator).tolist()]
        return [torch.randperm(size, generator=generator)[: self.subset_size].tolist() for _ in range(self.num_subsets)]

    def _has_dataset(self, trainer: Trainer) -> bool:
        return self.dataset is not None or hasattr(trainer.datamodule, "metric_dataset")  # type: ignore[attr-defined]

    def _samples(self, trainer: Trainer) -> Any:
        if self._resolved is None:
            self._resolved = self._find(trainer)
            if len(self._resolved) < self.subset_size:
                raise ValueError(
                    f"Expected argument `subset_size` to be at most the dataset's {len(self._resolved)} samples, "
                    f"but got {self.subset_size}."
                )
            if len(self._resolved) == self.subset_size and self.num_subsets > 1:
                rank_zero_warn(
                    f"FisherMonitor measures one subset instead of {self.num_subsets}: `subset_size` is the number of "
                    f"samples, {self.subset_size}, so that all subsets are the same. The spread is reported as nan."
                )
        return self._resolved

    def _find(self, trainer: Trainer) -> Any:
        if self.dataset is not None:
            return self.dataset if hasattr(self.dataset, "__getitem__") else self.dataset()  # type: ignore[operator]
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if hasattr(datamodule, "metric_dataset"):
            return datamodule.metric_dataset()
        dataset = getattr(trainer.train_dataloader, "dataset", None)
        if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            raise ValueError(
                "FisherMonitor needs a map-style dataset of un-augmented training samples, but the Trainer's training "
                "data has none; pass `dataset`."
            )
        rank_zero_warn(
            "FisherMonitor measures on the training dataset as it is; if it augments, pass an un-augmented `dataset`."
        )
        return dataset
