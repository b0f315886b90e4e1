"""The data module: what the loaders give, alone, in training, in several processes and after a resume."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import SGD
from torch.utils.data import DistributedSampler

from lightning_fisher.data import AUGMENTATIONS, load_digits
from lightning_fisher.data.images import IGNORED_LABEL
from lightning_fisher.data.randomness import stream
from lightning_fisher.datamodule import ImageDataModule
from lightning_fisher.models import resnet
from lightning_fisher.module import ImageClassifier


def digits(**options) -> ImageDataModule:
    defaults = {"num_classes": 10, "channels": 1, "image_size": 8, "batch_size": 64}
    return ImageDataModule("digits", **(defaults | options))


def ready(**options) -> ImageDataModule:
    datamodule = digits(**options)
    datamodule.setup("fit")
    return datamodule


def fake_trainer(rank: int = 0, world_size: int = 1, training: bool = False, total_batch_idx: int = -1):
    return SimpleNamespace(
        global_rank=rank,
        world_size=world_size,
        training=training,
        lightning_module=SimpleNamespace(dtype=torch.float32),
        fit_loop=SimpleNamespace(total_batch_idx=total_batch_idx),
    )


def all_labels(loader) -> list[int]:
    return torch.cat([labels for _, labels in loader]).tolist()


def test_loaders_give_uint8_batches():
    datamodule = ready(validation_size=200)
    images, labels = next(iter(datamodule.train_dataloader()))
    assert (images.shape, images.dtype) == ((64, 1, 8, 8), torch.uint8)
    assert (labels.shape, labels.dtype) == ((64,), torch.int64)
    sizes = [len(all_labels(datamodule.train_dataloader())), len(all_labels(datamodule.val_dataloader()))]
    assert sizes == [800, 200]
    test, clean = datamodule.test_dataloader()
    assert all_labels(test) == load_digits().test.labels.tolist()
    assert all_labels(clean) == datamodule.clean_set.labels.tolist()


def test_the_confusion_set_is_trained_on_but_not_measured():
    datamodule = ready(train_size=500, confusion_size=200)
    assert len(all_labels(datamodule.train_dataloader())) == 700
    assert len(all_labels(datamodule.test_dataloader()[1])) == len(datamodule.metric_dataset()) == 500
    official = load_digits().train
    confusion, labels = datamodule.train_set.indices[500:], datamodule.train_set.labels[500:]
    assert not set(confusion.tolist()) & set(datamodule.clean_set.indices.tolist())
    assert 0.75 < (labels != official.labels[confusion]).double().mean() < 1
    assert torch.equal(datamodule.clean_set.labels, official.labels[datamodule.clean_set.indices])


def test_label_noise_is_in_training_and_metrics_not_in_validation():
    datamodule = ready(validation_size=200, label_noise=0.4)
    official = load_digits().train.labels
    assert (datamodule.clean_set.labels != official[datamodule.clean_set.indices]).sum() == 320
    labels = [int(label) for _, label in datamodule.metric_dataset()]
    assert labels == datamodule.clean_set.labels.tolist()
    assert torch.equal(datamodule.validation_set.labels, official[datamodule.validation_set.indices])


def test_the_metric_dataset_is_normalized_and_not_augmented():
    datamodule = digits(augmentation="4-crop-f")
    dataset = datamodule.metric_dataset()  # loads the data itself
    image, label = dataset[5]
    source = load_digits().train
    values = source.images.double() / 255
    expected = (values[5] - values.mean()) / values.std(correction=0)
    torch.testing.assert_close(image.double(), expected, rtol=1e-5, atol=1e-6)
    assert image.dtype == torch.float32
    assert torch.equal(image, dataset[5][0])
    assert label == source.labels[5]


def test_given_statistics_are_used():
    image, _ = digits(mean=[0.5], std=[0.25]).metric_dataset()[0]
    torch.testing.assert_close(image, (load_digits().train.images[0] / 255 - 0.5) / 0.25)


def test_the_order_is_new_every_epoch_and_follows_from_the_seed():
    orders = []
    for seed in (0, 0, 1):
        torch.rand(seed + len(orders))  # the global random state has no part in it
        loader = ready(seed=seed).train_dataloader()
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            orders.append(list(loader.sampler))
    assert orders[0] == orders[2]
    assert orders[1] == orders[3]
    assert orders[0] != orders[1]
    assert orders[0] != orders[4]
    assert all(sorted(order) == list(range(1000)) for order in orders)


def test_a_last_batch_of_one_sample_is_left_out():
    sizes = [len(labels) for _, labels in ready(train_size=129).train_dataloader()]
    assert sizes == [64, 64]
    sizes = [len(labels) for _, labels in ready(train_size=130).train_dataloader()]
    assert sizes == [64, 64, 2]


def test_two_ranks_train_on_different_samples():
    seen = []
    for rank in range(2):
        datamodule = ready()
        datamodule.trainer = fake_trainer(rank, 2)
        seen.append(list(datamodule.train_dataloader().sampler))
    assert sorted(seen[0] + seen[1]) == list(range(1000))


def test_two_ranks_evaluate_each_sample_once():
    labels, lengths = [], []
    for rank in range(2):
        datamodule = ready(validation_size=201)
        datamodule.trainer = fake_trainer(rank, 2)
        loaders = [datamodule.val_dataloader(), *datamodule.test_dataloader()]
        # Lightning leaves loaders alone that are divided already.
        assert all(isinstance(loader.sampler, DistributedSampler) for loader in loaders)
        labels.append([all_labels(loader) for loader in loaders])
        lengths.append([len(loader) for loader in loaders])
    assert lengths[0] == lengths[1]
    expected = [datamodule.validation_set, datamodule.test_set, datamodule.clean_set]
    for one, other, images in zip(*labels, expected, strict=True):
        counted = [label for label in one + other if label != IGNORED_LABEL]
        assert sorted(counted) == sorted(images.labels.tolist())
        assert len(one) == len(other)


@pytest.mark.parametrize("name", ["no-aug", "flip-only", "1-crop-f", "4-crop-f"])
def test_batches_are_augmented_in_training_only(name):
    datamodule = ready(augmentation=name, seed=3)
    batch = next(iter(datamodule.train_dataloader()))
    plain = datamodule.normalization(batch[0])
    datamodule.trainer = fake_trainer(training=False)
    assert torch.equal(datamodule.on_after_batch_transfer(batch, 0)[0], plain)
    datamodule.trainer = fake_trainer(rank=1, training=True, total_batch_idx=6)
    images, labels = datamodule.on_after_batch_transfer(batch, 0)
    assert torch.equal(images, AUGMENTATIONS[name](plain, stream(3, "augmentation", 7, 1)))
    assert torch.equal(labels, batch[1])
    if name != "no-aug":
        assert not torch.equal(images, plain)
        datamodule.trainer = fake_trainer(rank=0, training=True, total_batch_idx=6)
        assert not torch.equal(datamodule.on_after_batch_transfer(batch, 0)[0], images)


def test_images_take_the_dtype_of_the_network():
    datamodule = ready()
    datamodule.trainer = fake_trainer()
    datamodule.trainer.lightning_module.dtype = torch.float64
    images, _ = datamodule.on_after_batch_transfer(next(iter(datamodule.train_dataloader())), 0)
    assert images.dtype == torch.float64


def fit(datamodule: ImageDataModule, max_epochs: int, checkpoint=None, **options) -> L.Trainer:
    torch.manual_seed(0)
    module = ImageClassifier(resnet(depth=8, width=4, in_channels=1), partial(SGD, lr=0.1, momentum=0.9))
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        logger=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in options.get("callbacks", [])),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(module, datamodule, ckpt_path=checkpoint)
    return trainer


def test_one_epoch_on_digits():
    trainer = fit(digits(validation_size=200), max_epochs=1)
    assert trainer.callback_metrics["train_loss"] < math.log(10)
    assert 0 <= trainer.callback_metrics["val_error"] <= 100
    test, train = trainer.test(trainer.lightning_module, datamodule=trainer.datamodule, verbose=False)
    assert set(test) == {"test_loss", "test_error", "test_error_top5", "test_calibration_error"}
    assert set(train) == {"train_eval_loss", "train_eval_error", "train_eval_error_top5"}


class Recorder(L.Callback):
    """Keeps the images that the network is trained and validated on."""

    def __init__(self) -> None:
        self.training: list[torch.Tensor] = []
        self.validation: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.training.append(batch[0])

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.validation.append(batch[0])


def test_lightning_trains_on_augmented_and_validates_on_plain_images():
    recorder = Recorder()
    datamodule = digits(train_size=128, validation_size=70, augmentation="4-crop-f", seed=5)
    fit(datamodule, max_epochs=2, callbacks=[recorder])
    loader = datamodule.train_dataloader()
    step = 0
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for images, _ in loader:
            plain = datamodule.normalization(images)
            expected = AUGMENTATIONS["4-crop-f"](plain, stream(5, "augmentation", step, 0))
            assert torch.equal(recorder.training[step], expected)
            step += 1
    assert len(recorder.training) == step == 4
    plain = torch.cat([datamodule.normalization(images) for images, _ in datamodule.val_dataloader()])
    assert torch.equal(torch.cat(recorder.validation), torch.cat([plain, plain]))


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    """Bit for bit, with shuffling and random crops, and without anybody's keeping the random state."""
    options = {"train_size": 200, "augmentation": "1-crop-f"}
    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole = fit(digits(**options), max_epochs=3, callbacks=[save]).lightning_module
    resumed = fit(digits(**options), max_epochs=3, checkpoint=tmp_path / "epoch=1.ckpt").lightning_module
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_without_validation_images_there_is_no_validation():
    trainer = fit(digits(train_size=128), max_epochs=1)
    assert not trainer.enable_validation
    assert "val_loss" not in trainer.callback_metrics


def test_test_images_are_never_for_training_or_validation(tmp_path):
    """Each image carries its own number: no test image turns up elsewhere."""
    numbers = np.arange(60, dtype=np.uint8)
    images = np.broadcast_to(numbers[:, None, None], (60, 4, 4))
    path = tmp_path / "numbered.npz"
    np.savez(
        path,
        train_images=images[:50],
        train_labels=numbers[:50] % 2,
        test_images=images[50:],
        test_labels=numbers[50:] % 2,
    )
    datamodule = ImageDataModule(
        "arrays", path=str(path), num_classes=2, channels=1, image_size=4, validation_size=20, batch_size=7
    )
    datamodule.setup()
    shown = [
        sorted(int(image[0, 0, 0]) for images, _ in loader for image in images)
        for loader in (datamodule.train_dataloader(), datamodule.val_dataloader(), datamodule.test_dataloader()[0])
    ]
    assert len(shown[1]) == 20
    assert sorted(shown[0] + shown[1]) == list(range(50))
    assert shown[2] == list(range(50, 60))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "mnist"}, r"`name` to be one of \['arrays', .*'imagenet'\], but got 'mnist'"),
        ({"augmentation": "2-crop"}, r"`augmentation` to be one of \['no-aug', .*\] for 'digits', but got '2-crop'"),
        ({"augmentation": "random-resized-crop"}, "`augmentation` to be one of .* for 'digits'"),
        ({"batch_size": 0}, "`batch_size` to be an integer of at least 1, but got 0"),
        ({"train_size": 1000.0}, r"`train_size` to be an integer of at least 1, but got 1000\.0"),
        ({"seed": -1}, "`seed` to be an integer of at least 0, but got -1"),
        ({"mean": [0.5]}, "`mean` and `std` to be both given or both null"),
        ({"path": "x.npz"}, r"options of 'digits' to be among .*, but got \['path'\]"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ImageDataModule(**({"name": "digits", "num_classes": 10, "channels": 1, "image_size": 8} | options))


def test_statistics_must_fit_the_channels():
    with pytest.raises(ValueError, match=r"`mean` and `std` to be 1 numbers \(`channels`\), but got \[0.5, 0.5\]"):
        digits(mean=[0.5, 0.5], std=[1.0, 1.0]).setup()


def test_sizes_that_do_not_fit_are_refused_when_the_data_are_known():
    with pytest.raises(ValueError, match="`train_size` to be null or from 1 to 1000"):
        digits(train_size=1001).setup()
