"""Whatever a step changes besides its weights changes once a batch, or is refused by name: never silently twice."""

from __future__ import annotations

import pytest
import torch

from lightning_fisher import FisherRegularizer
from tests.callbacks.multipass.state.changes import CHANGES, Gathering, prepare_data
from tests.callbacks.multipass.state.hidden import HIDDEN
from tests.callbacks.tiny import Classifier, image_batches, mlp, seeded, sgd

ALL = CHANGES | HIDDEN


class Changes(Classifier):
    def __init__(self, name):
        super().__init__(seeded(mlp))
        self.name, self.about = name, ALL[name]
        torch.manual_seed(0)
        self.it = self.about.make(self)

    def training_step(self, batch, batch_idx):
        self.about.change(self, batch)
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        kind = Gathering if "in an optimizer" in self.name else sgd
        return kind(self.net.parameters())

    def on_train_start(self):
        prepare_data(self)


def batches():
    return [(x.clone(), y) for x, y in image_batches([8] * 4)]


def assert_same(a, b):
    if isinstance(a, list) and a and isinstance(a[0], torch.Tensor):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    else:
        assert a == b


# Before the switch extra passes are tried after the step itself: the variable has a value then, which is put back.
KNOWN_BY_THEN = [("context variable without a value", 99)]


@pytest.mark.parametrize("options", [{"start": 99}, {"start": 0}], ids=["before", "after"])
@pytest.mark.parametrize("name", ALL)
def test_once_a_batch_or_refused(fit, name, options):
    about = ALL[name]
    plain = Changes(name)
    expected = fit(plain, batches())
    module = Changes(name)
    regularizer = FisherRegularizer(1e-30, num_sub_batches=4, **options)
    if about.refused and (name, options["start"]) not in KNOWN_BY_THEN:
        named = about.refused if isinstance(about.refused, str) else r"Changes\.it"
        with pytest.raises(ValueError, match=rf"{named}.*can't be put back"):
            fit(module, batches(), regularizer)
        return
    got = fit(module, batches(), regularizer)
    if about.read is not None:
        assert_same(about.read(module), about.read(plain))
    for a, b in zip(got.states, expected.states, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in b)


ONCE = (
    "int",
    "float",
    "complex",
    "None, then something",
    "enum",
    "namespace",
    "slots",
    "class",
    "new attribute",
    "hyperparameter",
    "tensor, replaced",
    "tensor, in place",
    "target network",
    "frozen target network",
    "target network through .data",
    "target network in a list",
    "clamped weights",
    "learning rate",
)


@pytest.mark.parametrize("name", ONCE)
def test_numbers_and_weights_count_once_in_the_shared_form_too(fit, name):
    about = ALL[name]
    plain, module = Changes(name), Changes(name)
    fit(plain, batches())
    regularizer = FisherRegularizer(1e-30, num_sub_batches=4, start=0, gradient="shared")
    fit(module, batches(), regularizer)
    mine, other = about.read(module), about.read(plain)
    if isinstance(mine, list) and isinstance(mine[0], torch.Tensor):
        assert all(torch.allclose(x, y, rtol=1e-5, atol=1e-6) for x, y in zip(mine, other, strict=True))
    else:
        assert mine == other


class ByHand(Changes):
    """In manual optimization."""

    def __init__(self, name):
        super().__init__(name)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


@pytest.mark.parametrize("name", ["sparse tensor", "tensor of inference mode", "function with a cache", "int"])
def test_once_a_batch_by_hand(fit, name):
    plain = ByHand(name)
    expected = fit(plain, batches())
    module = ByHand(name)
    got = fit(module, batches(), FisherRegularizer(1e-30, num_sub_batches=4, start=0))
    assert_same(ALL[name].read(module), ALL[name].read(plain))
    for a, b in zip(got.states, expected.states, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in b)
