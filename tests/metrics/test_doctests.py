"""The examples in the docstrings run, and say what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import lightning_fisher.functional.measures
import lightning_fisher.functional.ranking
import lightning_fisher.metrics

MODULES = ["lightning_fisher.arguments"]
MODULES += [
    f"lightning_fisher.metrics.{module.name}" for module in pkgutil.iter_modules(lightning_fisher.metrics.__path__)
]
MODULES += [
    f"lightning_fisher.functional.{name}"
    for name in ("fisher.bounds", "fisher.exact", "curvature.norms", "curvature.input_jacobian")
]

for package in (lightning_fisher.functional.ranking, lightning_fisher.functional.measures):
    MODULES += [f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0
    if not name.endswith((".gram", ".base", ".settings", ".logits")):
        assert results.attempted > 0
