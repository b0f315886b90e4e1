"""What the callback can't do right it refuses before training, in one line that says what to do instead."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch import strategies
from lightning.pytorch.plugins import HalfPrecision, Precision
from torch import nn

from lightning_fisher import FisherRegularizer
from tests.callbacks.tiny import CountingClassifier, image_batches, loader, mlp, seeded

BATCHES = image_batches([8] * 2)


def assert_one_line(error, *words):
    """The message is one line and holds the words (lower case)."""
    text = str(error).strip()
    assert "\n" not in text, text
    for word in words:
        assert word in text.lower(), f"{word!r} is missing in: {text}"


def refused(fit, module, *words, start=0, **options):
    """The fit ends with an error before any step, weights untouched; the same fit without the callback runs."""
    before = [parameter.detach().clone() for parameter in module.parameters()]
    with pytest.raises(Exception) as caught:
        fit(module, BATCHES, FisherRegularizer(num_sub_batches=4, start=start), **options)
    assert_one_line(caught.value, *words)
    assert module.calls == []
    for a, b in zip(module.parameters(), before, strict=True):
        assert torch.equal(a.to(b.dtype), b.to(a.dtype).to(b.dtype))


class TwoOptimizers(CountingClassifier):
    def __init__(self):
        super().__init__(seeded(mlp))

    def configure_optimizers(self):
        first, *rest = self.parameters()
        return torch.optim.SGD([first], lr=0.1), torch.optim.SGD(rest, lr=0.1)


class Manual(TwoOptimizers):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()


class DirectBackward(Manual):
    def training_step(self, batch, batch_idx):
        loss = CountingClassifier.training_step(self, batch, batch_idx)
        loss.backward()
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("start", [0, "first_lr_drop"])
def test_backward_on_the_loss_itself_in_manual_optimization(fit, start):
    """Its gradient can't carry anything; refused in one line before that batch is trained on."""
    module = DirectBackward()
    with pytest.raises(ValueError, match=r"`self.manual_backward\(loss\)`.*DirectBackward.training_step") as caught:
        fit(module, BATCHES, FisherRegularizer(num_sub_batches=4, start=start))
    assert_one_line(caught.value, "manual_backward")
    fit(DirectBackward(), BATCHES)


class OwnGradient(Manual):
    """Sets the gradients by itself."""

    def training_step(self, batch, batch_idx):
        loss = CountingClassifier.training_step(self, batch, batch_idx)
        for p, g in zip(self.parameters(), torch.autograd.grad(loss, list(self.parameters())), strict=True):
            p.grad = g
        for optimizer in self.optimizers():
            optimizer.step()


class OnlyReturnsTheLoss(Manual):
    def training_step(self, batch, batch_idx):
        return CountingClassifier.training_step(self, batch, batch_idx)


class DoesNothing(Manual):
    def training_step(self, batch, batch_idx):
        CountingClassifier.training_step(self, batch, batch_idx)


@pytest.mark.parametrize(
    ("cls", "start"),
    [(OwnGradient, 0), (OwnGradient, 99), (OnlyReturnsTheLoss, 0), (OnlyReturnsTheLoss, 99), (DoesNothing, 0)],
)
def test_manual_steps_without_manual_backward(fit, cls, start):
    module = cls()
    before = [p.detach().clone() for p in module.parameters()]
    with pytest.raises(ValueError, match=rf"{cls.__name__}\.training_step does not call it") as caught:
        fit(module, BATCHES, FisherRegularizer(num_sub_batches=4, start=start), max_epochs=2)
    assert_one_line(caught.value, "manual_backward", "automatic_optimization")
    if start == 0:
        assert all(torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))


class TrainsNowAndThen(Manual):
    """The first batch of three only fills a buffer."""

    def training_step(self, batch, batch_idx):
        return None if batch_idx % 3 == 0 else super().training_step(batch, batch_idx)


@pytest.mark.parametrize("start", [0, 99])
def test_manual_steps_that_skip_batches(fit, start):
    data = image_batches([8] * 7)
    plain, module = TrainsNowAndThen(), TrainsNowAndThen()
    fit(plain, data)
    fit(module, data, FisherRegularizer(1e-30, num_sub_batches=4, start=start))
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("options", [{"gradient": "shared"}, {"passes": "vmap"}])
def test_forms_that_manual_optimization_has_not(fit, options):
    (key,) = options
    with pytest.raises(ValueError, match=f"Expected argument `{key}` to be .* in manual optimization") as caught:
        fit(Manual(), BATCHES, FisherRegularizer(num_sub_batches=4, **options))
    assert_one_line(caught.value)


@pytest.mark.parametrize("options", [{"losses": [0]}, {"optimizers": [1]}, {"manual_accumulation": 2}])
def test_options_of_manual_optimization(fit, options):
    (key,) = options
    with pytest.raises(ValueError, match=f"Expected argument `{key}` to be left out in automatic optimization"):
        fit(CountingClassifier(seeded(mlp)), BATCHES, FisherRegularizer(num_sub_batches=4, **options))


@pytest.mark.parametrize("start", [0, "first_lr_drop"])
def test_several_optimizers_in_automatic_optimization(make_trainer, start):
    """Lightning itself refuses them, too."""
    module = TwoOptimizers()
    with pytest.raises(Exception, match="optimizer"):
        make_trainer(callbacks=[FisherRegularizer(num_sub_batches=4, start=start)]).fit(module, loader(BATCHES))
    assert module.calls == []


class NoOptimizer(CountingClassifier):
    def configure_optimizers(self):
        return None


def test_no_optimizer(fit):
    """Nothing is trained, so there is nothing to regularize."""
    refused(fit, NoOptimizer(seeded(mlp)), "optimizer")


def test_an_embedding_that_renormalizes_itself(fit):
    """Its forward pass changes the weights; refused before training, not at the switch."""

    class Embeds(CountingClassifier):
        def __init__(self):
            super().__init__(seeded(mlp))
            self.table = nn.Embedding(2, 3, max_norm=1.0)

        def forward(self, x):
            return self.net(x) + self.table((x[:, 0, 0, 0] > 0).long())

    refused(fit, Embeds(), "max_norm", start="first_lr_drop")
    fit(Embeds(), BATCHES)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_half_precision_weights(fit, precision):
    """``w - alpha g`` is ``w`` in half precision: no finite difference is left."""
    module = CountingClassifier(seeded(mlp))
    refused(fit, module, "precision", "32-true", start="first_lr_drop", precision=precision)


def test_half_precision_plugin(fit):
    refused(fit, CountingClassifier(seeded(mlp)), "precision", plugins=HalfPrecision("bf16-true"))


def test_weights_cast_by_hand(fit):
    """The same weights without the flag: the module itself is half precision."""

    class Cast(CountingClassifier):
        def forward(self, x):
            return self.net(x.bfloat16()).float()

    refused(fit, Cast(seeded(mlp).bfloat16()), "bfloat16", start="first_lr_drop")
    fit(Cast(seeded(mlp).bfloat16()), BATCHES)


def strategy_without_its_machine(name):
    """A strategy object of the real class; those that need a package or a GPU are not initialized."""
    cls = getattr(strategies, name)
    try:
        return cls()
    except Exception:
        strategy = object.__new__(cls)
        strategy._precision_plugin = Precision()
        return strategy


@pytest.mark.parametrize("start", [0, "first_lr_drop"])
@pytest.mark.parametrize(
    "name",
    ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy", "XLAStrategy", "SingleDeviceXLAStrategy"],
)
def test_sharded_strategies(make_trainer, monkeypatch, name, start):
    """Weights, or gradients, that no rank holds whole."""
    module, regularizer = CountingClassifier(seeded(mlp)), FisherRegularizer(num_sub_batches=4, start=start)
    trainer = make_trainer(callbacks=[regularizer])
    trainer.strategy.connect(module)
    monkeypatch.setattr(trainer._accelerator_connector, "strategy", strategy_without_its_machine(name))
    monkeypatch.setattr(type(trainer), "lightning_module", property(lambda self: module))
    monkeypatch.setattr(
        type(trainer), "optimizers", property(lambda self: [module.make_optimizer([next(module.parameters())])])
    )
    monkeypatch.setattr(type(trainer), "world_size", property(lambda self: 1))

    def start_training():
        regularizer.setup(trainer, module, "fit")
        regularizer.on_fit_start(trainer, module)
        regularizer.on_train_start(trainer, module)

    with pytest.raises(Exception) as caught:
        start_training()
    assert_one_line(caught.value, "strategy", "ddp", name.lower().removesuffix("strategy"))


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("beta", [-1.0, math.nan, math.inf, "10", None, True]),
        ("alpha", [0.0, -1e-4, math.nan, math.inf, "small", None]),
        ("num_sub_batches", [0, -8, 2.5, "8", None, True]),
        (
            "start",
            ["drop", "first lr drop", "", "epoch", "epoch:", "epoch:-1", "step:x", "step:-3",
             -1, math.nan, math.inf, "epoch:1.5.2", "step:1.5", "1e", None, True],
        ),
        ("split_fn", [3, "chunk"]),
        ("losses", [0, "0", [], [-1], [0.0], [True]]),
        ("optimizers", [0, "0", [], [-1]]),
        ("manual_accumulation", [0, 2.0, True, None]),
    ],
)  # fmt: skip
def test_bad_constructor_values(argument, values):
    """``Expected argument `x` to be ..., but got ...``, with the value that came."""
    for value in values:
        with pytest.raises((ValueError, TypeError)) as caught:
            FisherRegularizer(**{argument: value})
        text = str(caught.value)
        assert_one_line(text, f"expected argument `{argument}`", "but got")
        assert str(value) in text, f"{value!r} is missing in: {text}"


def test_bad_start_lists_the_valid_ones():
    with pytest.raises(ValueError) as caught:
        FisherRegularizer(start="second_lr_drop")
    assert_one_line(caught.value, "first_lr_drop", "epoch:", "step:")


@pytest.mark.parametrize(
    "arguments",
    [
        {"beta": 0},
        {"beta": 100, "alpha": 1, "num_sub_batches": 1},
        {"start": 0},
        {"start": "epoch:60"},
        {"start": "60"},
        {"start": 1.5},
        {"start": "epoch:1.5"},
        {"start": "step:1000"},
        {"split_fn": lambda batch, num_sub_batches: [batch]},
    ],
)
def test_good_constructor_values(arguments):
    regularizer = FisherRegularizer(**arguments)
    for name, value in arguments.items():
        if name in ("beta", "alpha", "num_sub_batches"):
            assert getattr(regularizer, name) == value


def test_other_trainer_functions_are_left_alone(make_trainer):
    """Validation and test of a half-precision or manual module need no refusal."""

    class Validates(Manual):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", 1.0)

    trainer = make_trainer(callbacks=[FisherRegularizer()])
    assert trainer.validate(Validates(), loader(BATCHES), verbose=False) == [{"val_loss": 1.0}]
