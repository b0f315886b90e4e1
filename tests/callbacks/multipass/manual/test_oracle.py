"""Manual optimization with the penalty, against plain float64 loops."""

from __future__ import annotations

import pytest
import torch

from lightning_fisher import FisherRegularizer
from tests.callbacks.multipass.manual.loops import ALPHA, PARTS
from tests.callbacks.multipass.manual.published import PUBLISHED, Mixed
from tests.callbacks.multipass.manual.steps import STEPS, Accumulating, Gan, Lbfgs, batches, networks
from tests.callbacks.tiny import seeded

BETA = 20.0


def regularizer(cls, beta=BETA, **options):
    if cls is Accumulating:
        options["manual_accumulation"] = 2
    return FisherRegularizer(beta, alpha=ALPHA, num_sub_batches=PARTS, **{"start": 0, **options})


def largest_error(module, nets):
    pairs = zip(module.nets.parameters(), nets.parameters(), strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


@pytest.mark.parametrize("cls", [*STEPS, *PUBLISHED], ids=lambda cls: cls.__name__)
def test_equals_the_oracle(fit, cls):
    """Weights after four batches, as close as rounding allows; and the penalty matters.

    LBFGS divides by differences of gradients, which makes rounding errors a thousand times as large.
    """
    module, nets, plain = cls(), seeded(cls.networks).double(), seeded(cls.networks).double()
    fit(module, batches(), regularizer(cls))
    cls.loop(nets, batches(), BETA)
    cls.loop(plain, batches(), 0.0)
    assert largest_error(module, nets) < (1e-11 if cls is Lbfgs else 1e-12)
    assert largest_error(module, plain) > 1e-4


def test_mixed_precision_equals_the_loop(fit):
    """The loss under autocast, the penalty in float32: the same numbers, up to rounding in float32."""
    module, nets, plain = Mixed(), seeded(networks), seeded(networks)
    fit(module, batches(), regularizer(Mixed), precision="bf16-mixed")
    Mixed.loop(nets, batches(), BETA)
    Mixed.loop(plain, batches(), 0.0)
    assert largest_error(module, nets) < 1e-4 * largest_error(module, plain)


@pytest.mark.parametrize("start", [0, 99], ids=["regularized", "rehearsed"])
@pytest.mark.parametrize("cls", [*STEPS, *PUBLISHED], ids=lambda cls: cls.__name__)
def test_zero_beta_is_bit_identical_to_no_callback(fit, cls, start):
    """``1e-30`` vanishes, but cannot be answered by leaving the machinery out."""
    plain, module = cls(), cls()
    expected = fit(plain, batches())
    got = fit(module, batches(), regularizer(cls, 1e-30, start=start))
    for a, b in zip(got.states, expected.states, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in b)
    assert got.global_steps == expected.global_steps
    assert got.lrs == expected.lrs


@pytest.mark.parametrize(
    ("options", "losses"), [({"losses": [0]}, (0,)), ({"losses": [1]}, (1,)), ({"optimizers": [1]}, (1,))]
)
def test_some_losses(fit, options, losses):
    module, nets = Gan(), seeded(networks).double()
    fit(module, batches(), regularizer(Gan, **options))
    Gan.loop(nets, batches(), BETA, losses)
    assert largest_error(module, nets) < 1e-12


def test_every_second_batch(fit):
    """n β in every n-th batch."""
    module = Gan()
    data = batches(2)
    fit(module, data, regularizer(Gan, every_n_steps=2))
    expected = seeded(networks).double()
    Gan.loop(expected, data[:1], 2 * BETA)
    regular = Gan()
    fit(regular, data[:1], regularizer(Gan, 2 * BETA))
    assert largest_error(regular, expected) < 1e-12
    assert largest_error(module, expected) > 1e-6  # a second, plain step followed


def test_what_is_logged(fit, memory_logger):
    """One penalty a loss, numbered from the second on."""
    fit(Gan(), batches(), regularizer(Gan), logger=memory_logger)
    for key in ("fisher/penalty", "fisher/penalty_1", "fisher/beta"):
        assert sorted(memory_logger.series(key)) == [2, 4, 6, 8] or len(memory_logger.series(key)) == 4
    assert memory_logger.series("fisher/penalty") != memory_logger.series("fisher/penalty_1")
