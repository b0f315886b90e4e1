"""What single options may be: a predicate each, and the words for it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning_fisher.arguments import is_finite_number, is_integer
from lightning_fisher.experiment.config.error_messages import listing

LARGEST_SEED = 2**32 - 1  # numpy's


@dataclass(frozen=True)
class Allowed:
    """What an option may be: a predicate, and the words for it."""

    test: Callable[[Any], bool]
    words: str
    choices: tuple[str, ...] = ()  # where it is one of a few words


def at_least(low: int, or_null: bool = False) -> Allowed:
    """An integer with a lower bound."""
    words = f"an integer of at least {low}" + (" or null" if or_null else "")
    return Allowed(lambda v: (or_null and v is None) or (is_integer(v) and v >= low), words)


def one_of(*choices: Any) -> Allowed:
    """One of a few words."""
    words = ["null" if c is None else str(c).lower() if isinstance(c, bool) else c for c in choices]
    return Allowed(lambda v: any(type(v) is type(c) and v == c for c in choices), listing(words), tuple(words))


def number(test: Callable[[float], bool], words: str) -> Allowed:
    """A number with a bound."""
    return Allowed(lambda v: is_finite_number(v) and test(v), words)


SEED = Allowed(lambda v: is_integer(v) and 0 <= v <= LARGEST_SEED, f"an integer of at least 0, at most {LARGEST_SEED}")


def or_null(allowed: Allowed) -> Allowed:
    """The same, or null."""
    return Allowed(lambda v: v is None or allowed.test(v), f"{allowed.words} or null")


def _numbers(value: Any, test: Callable[[float], bool] = lambda v: True) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(is_finite_number(v) and test(v) for v in value)


def _size(value: Any) -> bool:
    sizes = value if isinstance(value, list) and len(value) == 2 else [value]
    return all(is_integer(v) and v >= 1 for v in sizes)


def _part(low: int) -> Allowed:
    """Of an epoch."""
    test = lambda v: (is_integer(v) and v >= low) or (isinstance(v, float) and (low == 0 or v > 0) and 0 <= v <= 1)  # noqa: E731
    return Allowed(test, f"a fraction of at most 1.0{', not 0,' if low else ''} or an integer of at least {low}")


def _milestones(value: Any) -> bool:
    return value == [] or (_numbers(value, lambda v: 0 < v < 1) and value == sorted(value))


def _name(value: Any) -> bool:
    """Of a folder, and not one above."""
    return isinstance(value, str) and re.fullmatch(r"\w[\w.+-]*", value) is not None


def _names(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(isinstance(name, str) and name for name in values)


RULES: dict[str, Allowed] = {
    "seed": SEED,
    "restart": one_of(True, False),
    "debug": one_of(True, False),
    "metric.num_subsets": at_least(1),
    "metric.subset_size": at_least(2),
    "metric.logit_norm": or_null(number(lambda v: v > 0, "a positive number")),
    "metric.batch_norm": one_of("eval", "batch"),
    "metric.residual": one_of(True, False),
    "metric.scale": one_of("none", "layer", "filter", "element"),
    "metric.measures": Allowed(_names, "a name of a measure or a group, or a list of them, such as [forms,path_norm]"),
    "metric.chunk_size": at_least(2, or_null=True),
    "metric.seed": SEED,
    "metric.every_n_validations": at_least(1, or_null=True),
    "metric.at_end": one_of("all", "gamma", "none"),
    "score.which": one_of("last", "best"),
    "score.top": at_least(1),
    "score.samples": at_least(1, or_null=True),
    "reg.beta": Allowed(
        lambda v: v == "auto" or (is_finite_number(v) and v >= 0), "a number of at least 0, or auto", ("auto",)
    ),
    "model.name": Allowed(_name, "a name of letters, digits, `_`, `.`, `+` and `-`"),
    "model.max_epochs": at_least(1),
    "model.batch_size": at_least(1),
    "model.milestones": Allowed(_milestones, "ascending fractions of the training between 0 and 1, such as [0.5,0.75]"),
    "model.gamma": number(lambda v: v > 0, "a positive number"),
    "model.optimizer.lr": number(lambda v: v >= 0, "a number >= 0"),
    "model.label_smoothing": number(lambda v: 0 <= v <= 1, "a number from 0 to 1"),
    "model.channels_last": one_of(True, False),
    "model.compile": one_of(True, False),
    "model.manual_optimization": one_of(True, False),
    "model.scheduler_interval": one_of("epoch", "step"),
    "data.num_classes": at_least(2),
    "data.channels": at_least(1),
    "data.image_size": Allowed(_size, "a positive integer, or two of them: [height,width]"),
    "data.mean": or_null(Allowed(_numbers, "a list of numbers, one a channel,")),
    "data.std": or_null(Allowed(lambda v: _numbers(v, lambda s: s > 0), "a list of positive numbers, one a channel,")),
    "data.batch_size": at_least(1),
    "data.validation_size": at_least(0),
    "data.train_size": at_least(1, or_null=True),
    "data.confusion_size": at_least(0),
    "data.label_noise": number(lambda v: 0 <= v <= 1, "a number from 0 to 1"),
    "data.num_workers": at_least(0),
    "data.path": or_null(Allowed(lambda v: isinstance(v, str), "a text")),
    # Of the trainer only what it accepts in silence and fails on later: it judges the rest itself.
    "trainer.max_epochs": at_least(1),
    "trainer.max_steps": Allowed(
        lambda v: is_integer(v) and (v >= 1 or v == -1), "an integer of at least 1, or -1 (no limit)"
    ),
    "trainer.accumulate_grad_batches": at_least(1),
    "trainer.check_val_every_n_epoch": at_least(1),
    "trainer.devices": Allowed(
        lambda v: not isinstance(v, bool), "an integer of at least 1, a list of device numbers, auto, or -1 for all"
    ),
    "trainer.gradient_clip_val": or_null(number(lambda v: v >= 0, "a number >= 0")),
    "trainer.limit_train_batches": _part(1),
    "trainer.limit_val_batches": _part(0),
    "trainer.limit_test_batches": _part(1),
    "trainer.num_sanity_val_steps": at_least(-1),
    "trainer.log_every_n_steps": at_least(0),
    "trainer.benchmark": one_of(True, False, None),
    "trainer.deterministic": one_of(True, False, "warn", None),
}
