"""β tied to the learning rate: by Geiping's mapping, or in proportion; warm-up for Adam; what is refused."""

from __future__ import annotations

import functools

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_fisher import FisherRegularizer, GradientNormPenalty, SharpnessAware
from tests.callbacks.tiny import Classifier, image_batches, mlp, multi_step, one_cycle, seeded, sgd

BATCHES = image_batches([8] * 4)
RATES = [0.1] * 4 + [0.01] * 4 + [0.001] * 4  # of `multi_step(1, 2)`


def logged(fit, memory_logger, callback, name="fisher/beta", optimizer=sgd, scheduler=None, **options):
    """What a step logs, by the number of the step."""
    module = Classifier(seeded(mlp), optimizer=optimizer, scheduler=scheduler or multi_step(1, 2))
    fit(module, BATCHES, callback, logger=memory_logger, max_epochs=3, **options)
    return [value for _, value in sorted(memory_logger.series(name).items())]


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("alpha", [1e-4, 1e-2])
def test_auto_is_the_learning_rate_over_four_alpha(fit, memory_logger, alpha, strength):
    callback = FisherRegularizer("auto", alpha=alpha, num_sub_batches=4, start=0, strength=strength)
    got = logged(fit, memory_logger, callback)
    assert got == pytest.approx([rate * strength / (4 * alpha) for rate in RATES], rel=1e-6)


def test_the_papers_grid_lies_around_it():
    callback = FisherRegularizer("auto", start=0)
    callback.phase.active, callback.phase.rate = True, 0.01
    assert callback.current_beta(0.0) == pytest.approx(25.0)


def test_auto_begins_at_the_first_drop_by_default(fit, memory_logger):
    got = logged(fit, memory_logger, FisherRegularizer("auto", num_sub_batches=4))
    assert got == pytest.approx([rate / 4e-4 for rate in RATES[4:]], rel=1e-6)


def test_adam_takes_it_in_over_the_memory_of_its_average(fit, memory_logger):
    """β₂ = 0.75: the average forgets in 2/(1 − β₂) = 8 steps."""
    adam = functools.partial(torch.optim.Adam, lr=0.1, betas=(0.9, 0.75))
    got = logged(fit, memory_logger, FisherRegularizer("auto", num_sub_batches=4, start=0), optimizer=adam)
    expected = [rate / 4e-4 * min((step + 1) / 8, 1) for step, rate in enumerate(RATES)]
    assert got == pytest.approx(expected, rel=1e-6)


def test_a_ramp_of_its_own_takes_the_place_of_adams(fit, memory_logger):
    adam = functools.partial(torch.optim.Adam, lr=0.1)
    callback = FisherRegularizer("auto", num_sub_batches=4, start=0, ramp_epochs=2.0)
    got = logged(fit, memory_logger, callback, optimizer=adam)  # the first step has β = 0, and logs nothing
    expected = [rate / 4e-4 * min(step / 8, 1) for step, rate in enumerate(RATES)]
    assert got == pytest.approx(expected[1:], rel=1e-6)


def test_in_proportion_to_the_rate_at_its_highest_since_the_switch(fit, memory_logger):
    callback = FisherRegularizer(10.0, num_sub_batches=4, start=1, beta_schedule="lr")
    assert logged(fit, memory_logger, callback) == pytest.approx([10.0] * 4 + [1.0] * 4, rel=1e-6)


def test_a_warm_up_is_no_peak(fit, memory_logger):
    """One cycle, by steps: until the peak β is the given one, from there on it falls with the rate."""
    got = logged(
        fit,
        memory_logger,
        GradientNormPenalty(coefficient_schedule="lr"),
        "gradient_norm/coefficient",
        scheduler=one_cycle(3),
    )
    assert got[:4] == [pytest.approx(0.8)] * 4
    assert got[-1] < 0.01


@pytest.mark.parametrize("options", [{"beta": "auto"}, {"beta": 10.0, "beta_schedule": "lr"}])
def test_resumed_equals_uninterrupted(fit, tmp_path, options):
    def regularizer():
        return FisherRegularizer(**options, num_sub_batches=4, start=0)

    def module():
        return Classifier(seeded(mlp), scheduler=multi_step(1, 2))

    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole = fit(module(), BATCHES, regularizer(), save, max_epochs=3)
    resumed = fit(module(), BATCHES, regularizer(), max_epochs=3, ckpt_path=tmp_path / "epoch=1.ckpt")
    for state, wanted in zip(resumed.states, whole.states[8:], strict=True):
        assert all(torch.equal(state[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"beta": "automatic"}, "beta.*automatic"),
        ({"beta": "auto", "beta_schedule": "cosine"}, "beta_schedule.*cosine"),
        ({"beta": 1.0, "strength": 2.0}, "strength.*2.0"),
        ({"beta": "auto", "strength": -1.0}, "strength.*-1.0"),
        ({"beta_schedule": "steps"}, "beta_schedule.*steps"),
        ({"difference": "sideways"}, "difference.*sideways"),
        ({"step": "long"}, "step.*long"),
        ({"scaling": "cubic"}, "scaling.*cubic"),
    ],
)
def test_bad_options_are_named(options, text):
    with pytest.raises(ValueError, match=f"Expected argument.*{text}"):
        FisherRegularizer(**options)


def test_two_callbacks_with_extra_passes_are_refused(make_trainer):
    trainer = make_trainer(callbacks=[SharpnessAware(), FisherRegularizer()])
    with pytest.raises(ValueError, match=r"one callback with extra passes.*SharpnessAware and FisherRegularizer"):
        trainer.fit(Classifier(seeded(mlp)), BATCHES)
