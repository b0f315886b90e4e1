"""Options and their values in words: of methods above all, for tables and figures."""

from __future__ import annotations

from typing import Any

OPTIONS = {
    "reg": "method",
    "comparison": "method",
    "reg.beta": "β",
    "reg.alpha": "α",
    "reg.difference": "finite difference",
    "reg.step": "step",
    "reg.num_sub_batches": "sub-batches M",
    "reg.start": "regularized from",
    "reg.gradient": "gradient of the loss",
    "reg.perturbed": "perturbed sub-batches",
    "reg.every_n_steps": "regularized every n-th step",
    "reg.scaling": "scaling",
    "model": "network",
    "data": "data",
    "data.augmentation": "augmentation",
    "data.batch_size": "batch size",
    "data.confusion_size": "images with random labels",
    "data.label_noise": "label noise",
    "data.train_size": "training images",
    "model.batch_size": "batch size",
    "model.label_smoothing": "label smoothing",
    "model.optimizer.lr": "learning rate",
}
"""The names of options that studies vary; of others, the last part of their own."""

VALUES = {
    ("reg", "none"): "no regularizer",
    ("reg", "fisher"): "Fisher regularizer",
    ("reg", "fisher_auto"): "Fisher regularizer, β auto",
    ("reg", "fisher_amortized"): "Fisher regularizer, 1 of 8",
    ("reg", "label_smoothing"): "label smoothing",
    ("reg", "generalized_cross_entropy"): "generalized cross-entropy",
    ("reg", "sam"): "SAM",
    ("reg", "asam"): "ASAM",
    ("reg", "gnp"): "gradient-norm penalty",
    ("reg", "fisher_penalty"): "Fisher penalty",
    ("reg", "jacobian"): "Jacobian penalty",
    ("reg", "entropy_sgd"): "Entropy-SGD",
    ("reg", "path_sgd"): "Path-SGD",
    ("reg", "ghost_batch_norm"): "ghost batch-norm",
    ("reg", "large_margin"): "large-margin loss",
    ("reg", "flat_minimum_search"): "flat minimum search",
    ("reg", "swa"): "weight averaging",
    ("reg.perturbed", None): "all",
    ("model", "cnn"): "CNN",
    ("model", "densenet_bc"): "DenseNet-BC",
    ("model", "mlp"): "MLP",
    ("model", "resnet8"): "ResNet-8",
    ("model", "resnet20"): "ResNet-20",
    ("model", "wrn18_1_5"): "WRN-18-1.5",
    ("model", "wrn28_2"): "WRN-28-2",
    ("data", "cifar10"): "CIFAR-10",
    ("data", "cifar100"): "CIFAR-100",
    ("data", "imagenet"): "ImageNet",
    ("data.augmentation", "no-aug"): "none",
    ("data.augmentation", "flip-only"): "flips",
    ("data.augmentation", "1-crop-f"): "crops by 1, flips",
    ("data.augmentation", "4-crop-f"): "crops by 4, flips",
}
"""The names of values; of others, the value."""

PHRASES = {
    ("reg.gradient", "full"): "full gradient",
    ("reg.gradient", "shared"): "shared gradient",
    ("reg.scaling", "linear"): "linear scaling",
    ("reg.scaling", "sqrt"): "scaling by the root",
    ("reg.perturbed", None): "all sub-batches",
    ("reg.perturbed", 1): "1 sub-batch",
    ("reg.every_n_steps", 1): "every step",
    ("reg.every_n_steps", 3): "every 3rd step",
}
"""Options with their values, where name and value one after the other don't read well."""


def option_name(key: str) -> str:
    """An option or a config group in words.

    Args:
        key: the dotted name, such as ``"reg.beta"``.
    """
    return OPTIONS.get(key) or key.rpartition(".")[2].replace("_", " ")


def value_name(key: str, value: Any) -> str:
    """The value of an option in words.

    Args:
        key: the dotted name of the option.
        value: what it is set to.
    """
    named = VALUES.get((key, value)) if isinstance(value, (str, type(None))) else None
    return named or str(value)


def in_words(key: str, value: Any) -> str:
    """An option and its value in words: ``"β 10"``, ``"Fisher regularizer"``.

    Args:
        key: the dotted name of the option.
        value: what it is set to.
    """
    if isinstance(value, (str, int, type(None))) and (phrase := PHRASES.get((key, value))):
        return phrase
    if key == "reg.perturbed":
        return f"{value} sub-batches"
    text = f"{value:g}" if isinstance(value, float) else value_name(key, value)
    return text if key == "reg" else f"{option_name(key)} {text}"
