"""The examples in the docstrings of the other training methods run, and say what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = [
    "lightning_fisher.callbacks.fisher_penalty",
    "lightning_fisher.callbacks.jacobian_penalty",
    "lightning_fisher.callbacks.multipass_callback",
    "lightning_fisher.callbacks.sharpness_aware",
    "lightning_fisher.functional.multipass.finite_difference",
    "lightning_fisher.functional.multipass.methods.fisher_penalty",
    "lightning_fisher.functional.multipass.methods.gradient_norm_penalty",
    "lightning_fisher.functional.multipass.methods.sharpness_aware",
    "lightning_fisher.functional.multipass.methods.step_gradient",
    "lightning_fisher.functional.penalties.flat_minimum",
    "lightning_fisher.functional.penalties.generalized_cross_entropy",
    "lightning_fisher.functional.penalties.jacobian",
    "lightning_fisher.functional.penalties.large_margin",
    "lightning_fisher.layers.ghost_batch_norm",
    "lightning_fisher.optimizers.entropy_sgd",
    "lightning_fisher.optimizers.path_sgd",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0
    assert results.attempted > 0
