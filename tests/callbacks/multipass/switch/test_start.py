"""When the phase begins that is given as an epoch or a step."""

from __future__ import annotations

import pytest
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_fisher import FisherRegularizer
from tests.callbacks.tiny import (
    Classifier,
    CountingClassifier,
    image_batches,
    mlp,
    multi_step,
    seeded,
)


@pytest.mark.parametrize(
    ("start", "accumulate", "expected"),
    [
        (0, 1, (0, 0)),
        (2, 1, (8, 2)),
        ("epoch:0", 1, (0, 0)),
        ("epoch:2", 1, (8, 2)),
        ("step:0", 1, (0, 0)),
        ("step:6", 1, (6, 1)),
        ("step:3", 2, (3, 1)),  # optimizer steps, not batches
        ("epoch:2", 2, (4, 2)),
        ("epoch:60", 1, (None, None)),
        ("step:1000", 1, (None, None)),
    ],
)
def test_explicit_start(fit, start, accumulate, expected):
    """``int`` and ``"epoch:n"`` count from epoch 0, ``"step:n"`` counts optimizer steps; LR drops don't matter."""
    module = CountingClassifier(seeded(mlp), scheduler=multi_step(1), interval="epoch")
    regularizer = FisherRegularizer(1.0, num_sub_batches=2, start=start)
    fit(module, image_batches([4] * 4), regularizer, max_epochs=3, accumulate_grad_batches=accumulate)
    assert (regularizer.switch_step, regularizer.switch_epoch) == expected
    assert regularizer.active is (expected[0] is not None)
    first = 12 if expected[0] is None else expected[0] * accumulate
    assert module.regularized(first) == [False] * first + [True] * (12 - first)


def test_attributes_before_training():
    regularizer = FisherRegularizer()
    assert regularizer.active is False
    assert regularizer.switch_step is None
    assert regularizer.switch_epoch is None


@pytest.mark.parametrize(
    ("start", "expected"), [(0.5, 2), ("epoch:1.25", 5), ("1.5", 6), ("2", 8), (1.0, 4), ("1e0", 4)]
)
def test_fractions_of_an_epoch(fit, start, expected):
    regularizer = FisherRegularizer(1.0, num_sub_batches=2, start=start)
    fit(Classifier(seeded(mlp)), image_batches([4] * 4), regularizer, max_epochs=3)
    assert regularizer.switch_step == expected


@pytest.mark.parametrize("value", ["first_lr_drop", "60", "1.5", "epoch:60", "step:1000", "0"])
@pytest.mark.parametrize("by", ["flag", "file"])
def test_start_from_the_command_line_and_from_yaml(tmp_path, value, by):
    """`LightningCLI` gives numbers as numbers, and text as text."""
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    given = ["--trainer.callbacks+=lightning_fisher.FisherRegularizer", f"--trainer.callbacks.start={value}"]
    if by == "file":
        (tmp_path / "config.yaml").write_text(
            "trainer:\n  callbacks:\n  - class_path: lightning_fisher.FisherRegularizer\n"
            f"    init_args: {{start: '{value}', alpha: 1e-4}}\n"
        )
        given = ["--config", str(tmp_path / "config.yaml")]
    cli = LightningCLI(
        BoringModel,
        run=False,
        save_config_callback=None,
        args=[*given, "--trainer.accelerator=cpu"],
        seed_everything_default=False,
    )
    (regularizer,) = (c for c in cli.trainer.callbacks if isinstance(c, FisherRegularizer))
    number = value.partition(":")[2] or value
    assert regularizer.start.waits_for_drop is (value == "first_lr_drop")
    if not regularizer.start.waits_for_drop:
        at, by_step = float(number), value.startswith("step")
        assert not regularizer.start.reached(1e9 if by_step else at - 0.01, at - 1 if by_step else 10**9, True)
        assert regularizer.start.reached(at, at, False)
