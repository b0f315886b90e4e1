"""The public codes' arrays through `Trainer.fit`: six steps of SGD, every weight after every step, to 1e-10."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from lightning.pytorch import LightningModule
from torch.nn.functional import cross_entropy

from lightning_fisher import FisherPenalty, FisherRegularizer, GradientNormPenalty, JacobianPenalty, SharpnessAware
from lightning_fisher.functional import flat_minimum_penalty
from lightning_fisher.layers import convert_ghost_batch_norm
from lightning_fisher.optimizers import EntropySGD, PathSGD
from tests.callbacks.tiny import Classifier
from tests.reference.methods import ARRAYS, array, batches, network

SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def largest_error(recorder, run):
    """Of all weights after every step, and of batch-norm statistics where they are stored."""
    assert len(recorder.states) == 6
    errors = []
    for step, state in enumerate(recorder.states):
        for name, value in state.items():
            for kind in ("weights", "buffers"):
                own = name.removeprefix("net.")
                layer, _, last = own.rpartition(".")
                for key in (f"{run}/{kind}/{own}", f"{run}/{kind}/{layer}.batchnorm.{last}"):
                    if key in ARRAYS:
                        errors.append((value - array(key)[step]).abs().max().item())
    assert len(errors) >= 36
    return max(errors)


def geiping(difference, strength):
    return lambda: FisherRegularizer(
        "auto",
        alpha=0.01,
        num_sub_batches=4,
        start=0,
        gradient="shared",
        difference=difference,
        step="normalized",
        strength=strength,
    )


RUNS = {
    "sam/mlp": SharpnessAware,
    "sam/conv": SharpnessAware,
    "asam/mlp": lambda: SharpnessAware(2.0, adaptive=True),
    "asam/conv": lambda: SharpnessAware(2.0, adaptive=True),
    "asam_authors/mlp": lambda: SharpnessAware(0.5, adaptive="weights", eta=0.01),
    "gnp/mlp/paper": GradientNormPenalty,
    "gnp/conv/paper": GradientNormPenalty,
    "gradreg/mlp/forward": geiping("forward", 0.5),
    "gradreg/mlp/forward_strength5": geiping("forward", 5.0),
    "gradreg/mlp/central": geiping("central", 0.5),
    "gradreg/mlp/central_strength5": geiping("central", 5.0),
    "jacreg/mlp/exact": lambda: JacobianPenalty(0.01, None),
    "jacreg/conv/exact": lambda: JacobianPenalty(0.01, None),
}


def trained(fit, run, *callbacks, net=None, optimizer=SGD, **options):
    net = net or ("conv" if "conv" in run else "mlp")
    module = Classifier(network(net), optimizer=optimizer)
    return largest_error(fit(module, batches(net), *callbacks, precision="64-true", **options), run)


@pytest.mark.parametrize("run", RUNS)
def test_callbacks(fit, run):
    assert trained(fit, run, RUNS[run]()) < 1e-10


def test_fisher_penalty(fit, monkeypatch):
    labels = iter(array("fisher_penalty/sampled/labels"))
    monkeypatch.setattr("lightning_fisher.callbacks.fisher_penalty.draw_labels", lambda logits, generator: next(labels))
    callback = FisherPenalty(0.1, derivative="double_backward")
    assert trained(fit, "fisher_penalty/sampled", callback, enable_progress_bar=False) < 1e-10


@pytest.mark.parametrize("net", ["mlp", "conv"])
def test_jacobian_with_their_directions(fit, net, monkeypatch):
    directions = iter(array(f"jacreg/{net}/proj1/projection"))
    monkeypatch.setattr(
        "lightning_fisher.functional.penalties.jacobian._directions", lambda *args: iter([next(directions)])
    )
    assert trained(fit, f"jacreg/{net}/proj1", JacobianPenalty(0.01)) < 1e-10


@pytest.mark.parametrize(("code", "update"), [("bigbatch", "sequential"), ("composer", "averaged")])
def test_ghost_batch_norm(fit, code, update):
    module = Classifier(convert_ghost_batch_norm(network("conv"), 4, update=update), optimizer=SGD)
    assert largest_error(fit(module, batches("conv"), precision="64-true"), f"ghost_bn/{code}_train") < 1e-10


def test_path_sgd(fit):
    net = network("relu_mlp")
    module = Classifier(net, optimizer=functools.partial(PathSGD, lr=0.01, model=net))
    assert largest_error(fit(module, batches(), precision="64-true"), "path_sgd/paper") < 1e-10


class WithFlatMinima(Classifier):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return cross_entropy(self(x), y) + 1e-5 * flat_minimum_penalty(self.net, x)


def test_flat_minimum_search(fit):
    module = WithFlatMinima(network(), optimizer=SGD)
    assert largest_error(fit(module, batches(), precision="64-true"), "fms/training") < 1e-10


class NextBatches(LightningModule):
    """Each call of the closure takes the next batch, as the authors' code does."""

    def __init__(self, **options):
        super().__init__()
        self.automatic_optimization = False
        self.net, self.options = network(), options
        self.batches = itertools.cycle(batches())

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()

        def closure():
            x, y = next(self.batches)
            optimizer.zero_grad()
            loss = cross_entropy(self.net(x), y)
            self.manual_backward(loss)
            return loss

        optimizer.step(closure)

    def configure_optimizers(self):
        return EntropySGD(self.parameters(), lr=0.1, noise=0.0, **self.options)


@pytest.mark.parametrize(
    ("run", "options"),
    [
        ("noise0", {"scoping": 0.0}),
        ("noise0_gamma1", {"scoping": 0.0, "gamma": 1.0}),
        ("no_momentum", {"scoping": 0.0, "gamma": 0.1, "momentum": 0.0, "inner_momentum": 0.0}),
    ],
)
def test_entropy_sgd(fit, run, options):
    recorder = fit(NextBatches(**options), batches(), precision="64-true")
    assert largest_error(recorder, f"entropy_sgd/{run}") < 1e-10
