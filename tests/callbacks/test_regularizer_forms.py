"""gradient="shared", perturbed and every_n_steps through the Trainer, against plain float64 loops."""

from __future__ import annotations

import pytest
import torch
from torchmetrics import Accuracy

from lightning_fisher import FisherRegularizer
from lightning_fisher.functional.multipass.sub_batches import draw_perturbed
from tests.callbacks.tiny import Classifier, Ledger, conv_bn_net, image_batches, mlp, seeded, sgd
from tests.reference.regularized_forms import train_form

BATCHES = image_batches([16] * 5)


def flags(perturbed, count=4):
    """The same draw as the callback's: from the number of the batch."""
    return lambda number: draw_perturbed(count, perturbed, torch.Generator().manual_seed(number))


@pytest.mark.parametrize("scaling", ["linear", "sqrt"])
@pytest.mark.parametrize("every_n", [1, 3])
@pytest.mark.parametrize("perturbed", [None, 1])
@pytest.mark.parametrize(("gradient", "passes"), [("full", "loop"), ("full", "vmap"), ("shared", "loop")])
def test_equals_the_oracle(fit, assert_close_states, gradient, passes, perturbed, every_n, scaling):
    """Weights and buffers after every batch; the counting buffer moves once a pass of the shared form."""
    expected = train_form(
        seeded(conv_bn_net),
        BATCHES,
        epochs=2,
        beta=5.0,
        optimizer=sgd,
        gradient=gradient,
        flags=flags(perturbed),
        every_n=every_n,
        scaling=scaling,
    )
    regularizer = FisherRegularizer(
        5.0,
        num_sub_batches=4,
        start=0,
        gradient=gradient,
        perturbed=perturbed,
        every_n_steps=every_n,
        scaling=scaling,
        passes=passes,
    )
    got = fit(Classifier(seeded(conv_bn_net)), BATCHES, regularizer, max_epochs=2, precision="64-true")
    assert_close_states(got.states, expected)
    assert regularizer.passes_chosen == passes


def test_every_n_counts_optimizer_steps(fit, make_trainer):
    """With accumulation all batches of a step are regularized or none is."""
    regularized = Ledger()
    module = Classifier(seeded(mlp))
    step = module.training_step
    module.training_step = lambda batch, batch_idx: regularized.append(len(batch[1])) or step(batch, batch_idx)
    regularizer = FisherRegularizer(5.0, num_sub_batches=4, start=0, every_n_steps=2)
    fit(module, image_batches([16] * 8), regularizer, accumulate_grad_batches=2)
    full = [4] * 8 + [16]
    assert regularized == [*full, *full, 16, 16, *full, *full, 16, 16]


class Reports(Classifier):
    """Logs in every way and returns a mapping."""

    def __init__(self, net):
        super().__init__(net)
        self.accuracy = Accuracy("multiclass", num_classes=3)
        self.calls = 0

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x)
        loss = torch.nn.functional.cross_entropy(logits, y)
        self.calls += 1
        self.accuracy.update(logits, y)
        self.log("loss", loss, on_step=True, on_epoch=True, batch_size=len(y))
        self.log_dict({"twice": 2 * loss, "number": float(len(y))}, on_step=True)
        self.log("accuracy", self.accuracy, on_epoch=True, on_step=False)
        return {"loss": loss, "logits": logits, "name": "x"}


@pytest.mark.parametrize("perturbed", [None, 2])
def test_shared_logs_once_and_merges_what_the_step_returns(fit, memory_logger, perturbed):
    batches = image_batches([16, 16, 6])
    module, plain = Reports(seeded(mlp)), Reports(seeded(mlp))
    regularizer = FisherRegularizer(1e-30, num_sub_batches=4, start=0, gradient="shared", perturbed=perturbed)
    got = fit(module, batches, regularizer, logger=memory_logger, precision="64-true")
    other = type(memory_logger)()
    expected = fit(plain, batches, logger=other, precision="64-true")
    for key in ("loss_step", "twice", "loss_epoch", "accuracy"):
        series = memory_logger.series(key)
        assert series.keys() == other.series(key).keys()
        assert series == pytest.approx(other.series(key), rel=1e-6), key
    assert module.accuracy._update_count in (0, sum(p is not None for p in [perturbed]))  # reset at the epoch's end
    for outputs, wanted in zip(got.outputs, expected.outputs, strict=True):
        assert outputs["loss"].item() == pytest.approx(wanted["loss"].item(), rel=1e-9)
        assert torch.allclose(outputs["logits"], wanted["logits"].detach())
        assert set(outputs["name"]) == {"x"}


@pytest.mark.parametrize("options", [{"gradient": "shared"}, {"perturbed": 1}, {"every_n_steps": 2}])
def test_zero_beta_is_bit_identical_to_no_callback(fit, assert_identical, options):
    plain = fit(Classifier(seeded(conv_bn_net)), BATCHES)
    regularizer = FisherRegularizer(0.0, num_sub_batches=4, start=0, **options)
    assert_identical(fit(Classifier(seeded(conv_bn_net)), BATCHES, regularizer), plain)


def test_resumed_draws_the_same_sub_batches(fit, tmp_path, assert_close_states):
    options = {"num_sub_batches": 4, "start": 0, "gradient": "shared", "perturbed": 1, "every_n_steps": 2}
    whole = fit(Classifier(seeded(mlp)), BATCHES, FisherRegularizer(5.0, **options), max_epochs=3)
    first = fit(Classifier(seeded(mlp)), BATCHES, FisherRegularizer(5.0, **options), max_epochs=1)
    first.trainer.save_checkpoint(tmp_path / "first.ckpt")
    second = fit(
        Classifier(seeded(mlp)),
        BATCHES,
        FisherRegularizer(5.0, **options),
        max_epochs=3,
        ckpt_path=tmp_path / "first.ckpt",
    )
    for name, value in second.states[-1].items():
        assert torch.equal(value, whole.states[-1][name]), name


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"gradient": "both"}, "gradient.*full.*shared.*'both'"),
        ({"perturbed": 9}, "perturbed.*8 sub-batches.*9"),
        ({"perturbed": 1.5}, "perturbed.*1.5"),
        ({"every_n_steps": 0}, "every_n_steps.*0"),
        ({"every_n_steps": True}, "every_n_steps.*True"),
    ],
)
def test_bad_options_are_named(options, text):
    with pytest.raises(ValueError, match=f"Expected argument.*{text}"):
        FisherRegularizer(**options)
