"""The one LightningDataModule: images of any source, as the paper's experiments need them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from lightning_fisher.arguments import require_integer, suggestion
from lightning_fisher.data import (
    AUGMENTATIONS,
    SOURCES,
    ImageSource,
    LabeledImages,
    Normalization,
    NormalizedImages,
    SourceSplits,
    channel_statistics,
    partition_training_set,
)
from lightning_fisher.data.images import MemoryImages, keep_batch
from lightning_fisher.data.randomness import stream
from lightning_fisher.data.sources.files import TRAINING_IMAGES, check_sizes
from lightning_fisher.data.sources.imagenet import FolderImages

RANDOM_RESIZED_CROP = "random-resized-crop"


class ImageDataModule(L.LightningDataModule):
    """Training, validation and test images, normalized and augmented a batch at a time on the device.

    Batches leave the data loaders as uint8 `[B, C, H, W]` with labels int64 `[B]`; after the transfer they are
    normalized to the network's dtype and, in training, augmented. The order of the samples and the augmentation are
    functions of `seed`, epoch, step and rank alone, not of the global random state: a resumed run continues as the
    uninterrupted one would have.

    The official test images are only ever used for the test. Which images are for training and validation, the
    confusion set and the label noise: see :func:`lightning_fisher.data.partition_training_set`.

    Args:
        name: the data set: `"digits"`, `"cifar10"`, `"cifar100"`, `"imagenet"` or `"arrays"`.
        num_classes: number of classes K.
        channels: C of the images.
        image_size: H and W of the images, or one number for both. Images in memory must have this size; ImageNet is
            scaled to it.
        batch_size: samples in a batch of one process.
        augmentation: `"no-aug"`, `"flip-only"`, `"1-crop-f"` (pad by 1, random crop, flip), `"4-crop-f"` (pad by 4),
            or, for `imagenet` only, `"random-resized-crop"` (random resized crop and flip of the original image; done
            by the workers and drawn from their random state, so that a resumed run draws other crops).
        validation_size: number of training images set aside for validation; 0 for none. Of a data set with validation
            images of its own, so many of those, or all if there are fewer, and no training images.
        validation_seed: seed of their choice, independent of `seed`.
        train_size: number of clean training images; `None` for all that are left.
        confusion_size: number of further training images with random labels.
        label_noise: the fraction of the clean training labels that is replaced by wrong ones.
        seed: the run's seed: subset, confusion set, label noise, order and augmentation.
        mean: C means on the scale 0 to 1; `None` computes them, and `std`, from the official training images.
        std: C standard deviations on the scale 0 to 1.
        num_workers: processes that load batches; 0 is best for images in memory.
        **source_options: what the data set itself takes: `data_dir` and `download` for `cifar10` and `cifar100`,
            `data_dir` for `imagenet`, `path` for `arrays`.

    Raises:
        ValueError: if an argument is not among the allowed values. Missing or unfit data are reported by `setup`.
    """

    def __init__(
        self,
        name: str,
        *,
        num_classes: int,
        channels: int,
        image_size: int | Sequence[int],
        batch_size: int = 128,
        augmentation: str = "no-aug",
        validation_size: int = 0,
        validation_seed: int = 0,
        train_size: int | None = None,
        confusion_size: int = 0,
        label_noise: float = 0.0,
        seed: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        num_workers: int = 0,
        **source_options: Any,
    ) -> None:
        super().__init__()
        if name not in SOURCES:
            raise ValueError(
                f"Expected argument `name` to be one of {sorted(SOURCES)}, but got {name!r}.{suggestion(name, SOURCES)}"
            )
        allowed = [*AUGMENTATIONS, RANDOM_RESIZED_CROP] if name == "imagenet" else [*AUGMENTATIONS]
        if augmentation not in allowed:
            raise ValueError(
                f"Expected argument `augmentation` to be one of {allowed} for {name!r}, but got {augmentation!r}."
                f"{suggestion(augmentation, allowed)}"
            )
        for argument, value, least in (
            ("batch_size", batch_size, 1),
            ("validation_size", validation_size, 0),
            ("validation_seed", validation_seed, 0),
            ("train_size", 1 if train_size is None else train_size, 1),
            ("confusion_size", confusion_size, 0),
            ("seed", seed, 0),
            ("num_workers", num_workers, 0),
        ):
            require_integer(argument, value, least)
        if (mean is None) != (std is None):
            raise ValueError(f"Expected `mean` and `std` to be both given or both null, but got {mean} and {std}.")
        if mean is None and name == "imagenet":
            raise ValueError("Expected arguments `mean` and `std` to be given for 'imagenet', but got null.")
        source_options = {"num_classes": num_classes, "channels": channels, "image_size": image_size} | source_options
        self._source = SOURCES[name]
        own = inspect.signature(self._source).parameters
        if unknown := sorted(set(source_options) - set(own)):
            raise ValueError(f"Expected options of {name!r} to be among {list(own)}, but got {unknown}.")

        self.name = name
        self.num_classes = num_classes
        self.channels = channels
        self.image_size = image_size
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.validation_size = validation_size
        self.validation_seed = validation_seed
        self.train_size = train_size
        self.confusion_size = confusion_size
        self.label_noise = label_noise
        self.seed = seed
        self.num_workers = num_workers
        self._mean = mean
        self._std = std
        self._source_options = source_options
        self._downloads = "download" in own and source_options.get("download", own["download"].default)
        self._ready = False
        if validation_size == 0:
            # The way to tell Lightning that there is no validation loop; an empty loader would leave it enabled.
            self.val_dataloader = None  # type: ignore[assignment, method-assign]

    def _load(self) -> SourceSplits:
        return self._source(**self._source_options)

    def prepare_data(self) -> None:
        """Fetch a data set that is missing, in one process only, unless `download` is false."""
        if self._ready or not self._downloads:
            return
        if self.name in TRAINING_IMAGES:  # refused before minutes of fetching
            check_sizes(
                TRAINING_IMAGES[self.name],
                self.validation_size,
                self.train_size,
                self.confusion_size,
                self.label_noise,
            )
        self._load()

    def setup(self, stage: str | None = None) -> None:
        """Load and divide the data, once, whatever the stage.

        Args:
            stage: not used: all stages need the training images.

        Raises:
            FileNotFoundError: if the data are missing, with what to do about it.
            ValueError: if the data are not as described or the sizes do not fit.
        """
        if self._ready:
            return
        splits = self._load()
        own_validation = splits.validation is not None
        parts = partition_training_set(
            splits.train.labels,
            self.num_classes,
            validation_size=0 if own_validation else self.validation_size,
            validation_seed=self.validation_seed,
            train_size=self.train_size,
            confusion_size=self.confusion_size,
            label_noise=self.label_noise,
            seed=self.seed,
        )
        self.normalization = self._normalization(splits)
        self.clean_set = LabeledImages(splits.train, parts.clean_indices, parts.clean_labels)
        self.validation_set = self._validation_set(splits, parts.validation_indices)
        self.test_set = LabeledImages.all_of(splits.test)
        train_source: ImageSource = splits.train
        if self.augmentation == RANDOM_RESIZED_CROP:
            assert isinstance(train_source, FolderImages)
            train_source = train_source.with_random_crops()
        self.train_set = LabeledImages(
            train_source,
            torch.cat([parts.clean_indices, parts.confusion_indices]),
            torch.cat([parts.clean_labels, parts.confusion_labels]),
        )
        self._ready = True

    def _validation_set(self, splits: SourceSplits, set_aside: Tensor) -> LabeledImages:
        if splits.validation is None:
            return LabeledImages(splits.train, set_aside, splits.train.labels[set_aside])
        labels = splits.validation.labels
        chosen = torch.randperm(len(labels), generator=stream(self.validation_seed, "validation"))
        chosen = chosen[: self.validation_size].sort().values
        return LabeledImages(splits.validation, chosen, labels[chosen])

    def _normalization(self, splits: SourceSplits) -> Normalization:
        mean, std = self._mean, self._std
        if mean is None or std is None:
            assert isinstance(splits.train, MemoryImages)
            mean, std = channel_statistics(splits.train.images)
            if not all(std):
                raise ValueError(
                    f"Expected images that differ, but all training images are the same in channel {std.index(0.0)}: "
                    "set `mean` and `std` of the data configuration if that is right."
                )
        if len(mean) != self.channels:
            raise ValueError(
                f"Expected arguments `mean` and `std` to be {self.channels} numbers (`channels`), "
                f"but got {list(mean)} and {list(std)}."
            )
        return Normalization(tuple(mean), tuple(std))

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    def _sampler(self, images: LabeledImages, shuffle: bool) -> DistributedSampler[Any]:
        # In one process too: the order of an epoch then follows from seed and epoch alone.
        rank = self.trainer.global_rank if self.trainer is not None else 0
        return DistributedSampler(images, num_replicas=self._world_size, rank=rank, shuffle=shuffle, seed=self.seed)

    def _loader(self, images: LabeledImages, **options: Any) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(
            images,
            batch_size=self.batch_size,
            collate_fn=keep_batch,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            **options,
        )

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """The clean and the confusion set, in a new order every epoch, divided among the processes.

        The last batch may be smaller. Only a last batch of a single sample is left out: batch-norm has no statistics
        of one sample.
        """
        sampler = self._sampler(self.train_set, shuffle=True)
        single = self.batch_size > 1 and len(sampler) % self.batch_size == 1 and len(sampler) > 1
        return self._loader(self.train_set, sampler=sampler, drop_last=single)

    def _evaluation_loader(self, images: LabeledImages) -> DataLoader[tuple[Tensor, Tensor]]:
        # The padding that makes the parts of the processes equal is marked, so that no sample counts twice.
        padded = images.padded_to_multiple_of(self._world_size)
        return self._loader(padded, sampler=self._sampler(padded, shuffle=False))

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """The validation images. Where `validation_size` is 0, the attribute is `None`: no validation loop."""
        return self._evaluation_loader(self.validation_set)

    def test_dataloader(self) -> list[DataLoader[tuple[Tensor, Tensor]]]:
        """The test images, and the clean training images without augmentation."""
        return [self._evaluation_loader(self.test_set), self._evaluation_loader(self.clean_set)]

    def metric_dataset(self) -> NormalizedImages:
        """The clean training images as metrics take them: single samples, normalized, not augmented, on the CPU.

        Labels are those that were trained with: label noise is in them, the confusion set is not.
        """
        self.setup()
        return NormalizedImages(self.clean_set, self.normalization)

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Normalize a batch on its device, and augment it in training.

        Args:
            batch: uint8 images `[B, C, H, W]` and labels `[B]`.
            dataloader_idx: not used.

        Returns:
            Images `[B, C, H, W]` in the network's dtype, and the labels.
        """
        images, labels = batch
        trainer = self.trainer
        dtype = torch.float32 if trainer is None else trainer.lightning_module.dtype
        assert isinstance(dtype, torch.dtype)
        images = self.normalization(images, dtype)
        if trainer is not None and trainer.training and self.augmentation in AUGMENTATIONS:
            step = trainer.fit_loop.total_batch_idx + 1  # the batch about to be trained on; goes on after a resume
            generator = stream(self.seed, "augmentation", step, trainer.global_rank)
            images = AUGMENTATIONS[self.augmentation](images, generator)
        return images, labels
