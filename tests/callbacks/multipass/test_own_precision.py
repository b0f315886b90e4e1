"""SAM in the Trainer's precision (``precision="trainer"``): against a loop under autocast, and against float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

from lightning_fisher import FisherPenalty, GradientNormPenalty, MultiPassCallback, SharpnessAware
from lightning_fisher.functional.multipass.loop import Context, penalty_of_losses
from lightning_fisher.functional.multipass.methods.sharpness_aware import Sharpness
from tests.callbacks.tiny import Classifier, Ledger, image_batches, seeded, sgd

BATCHES = image_batches([32] * 4)
RHO = 0.3  # so long that a pass at weights that autocast has kept from before would show


def net():
    """With and without samples that interact; autocast runs its products in bfloat16 and its loss in float32."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(288, 16),
        nn.SiLU(),
        nn.Linear(16, 3),
    )


class Watched(Classifier):
    """Keeps the dtype of the logits of every pass."""

    def __init__(self, net):
        super().__init__(net)
        self.dtypes = Ledger()

    def forward(self, x):
        logits = super().forward(x)
        self.dtypes.append(logits.dtype)
        return logits


class Manual(Watched):
    """The same in manual optimization."""

    def __init__(self, net):
        super().__init__(net)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()


def gradient_of(module, x, y, dtype=torch.bfloat16):
    """Of the mean loss, by one autocast context a pass, and the backward pass outside of it: a plain training's."""
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        loss = F.cross_entropy(module(x), y)
    return torch.autograd.grad(loss, list(module.parameters()))


def naive_sam(module, x, y, rho, coefficient=1.0, **options):
    """``(1 − a) ∇L(w) + a ∇L(w + ρ g/‖g‖)``; batch-norm's statistics are those of the pass at w."""
    g = gradient_of(module, x, y, **options)
    moved = copy.deepcopy(module)
    length = torch.sqrt(sum((t.double() ** 2).sum() for t in g))
    with torch.no_grad():
        for p, t in zip(moved.parameters(), g, strict=True):
            p.add_((rho * t.double() / length).to(p.dtype))
    h = gradient_of(moved, x, y, **options)
    return [(1 - coefficient) * s + coefficient * t for s, t in zip(g, h, strict=True)]


def trained(rho=RHO, coefficient=1.0):
    """Weights and buffers after a loop of one's own."""
    module = seeded(net)
    optimizer = sgd(module.parameters())
    for x, y in BATCHES:
        for p, t in zip(module.parameters(), naive_sam(module, x, y, rho, coefficient), strict=True):
            p.grad = t
        optimizer.step()
    return module.state_dict()


def sharpness(module, x, y, rho, *, loss_shares=None, precise=False):
    """The sharpness of a batch, evaluated by the engine in the caller's precision."""
    return penalty_of_losses(
        [lambda: F.cross_entropy(module(x), y)],
        list(module.parameters()),
        weights=[1.0],
        loss_shares=loss_shares,
        module=module,
        method=Sharpness(rho),
        context=Context(precise=precise),
    )


def distance(a, b):
    a, b = (torch.cat([t.double().reshape(-1) for t in x]) for x in (a, b))
    return float((a - b).norm() / b.norm())


def test_the_reference_loop_takes_another_way_than_float32():
    """So that agreement below shows the precision, and the perturbation."""
    plain = trained(rho=0.0)
    full = seeded(net)
    optimizer = sgd(full.parameters())
    for x, y in BATCHES:
        for p, t in zip(full.parameters(), naive_sam(full, x, y, RHO, dtype=torch.float32), strict=True):
            p.grad = t
        optimizer.step()
    found = trained()
    assert distance(plain.values(), found.values()) > 3e-2
    assert distance(full.state_dict().values(), found.values()) > 1e-4


@pytest.mark.parametrize("kind", [Watched, Manual])
@pytest.mark.parametrize("gradient", ["auto", "full"])
@pytest.mark.parametrize(
    ("callback", "coefficient"),
    [
        (lambda **o: SharpnessAware(RHO, precision="trainer", **o), 1.0),
        (lambda **o: GradientNormPenalty(RHO, 0.7, precision="trainer", **o), 0.7),
    ],
)
def test_equals_a_loop_under_autocast(fit, kind, gradient, callback, coefficient):
    module = kind(seeded(net))
    fit(module, BATCHES, callback(gradient=gradient), precision="bf16-mixed")
    assert set(module.dtypes) == {torch.bfloat16}
    expected = trained(coefficient=coefficient)
    for name, value in module.net.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_bit_for_bit_as_full_where_the_trainer_is(fit, precision):
    found = []
    for own in ("full", "trainer"):
        module = Watched(seeded(net))
        batches = [(x.double(), y) for x, y in BATCHES] if precision == "64-true" else BATCHES
        fit(module, batches, SharpnessAware(RHO, precision=own), precision=precision)
        found.append(module.net.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(found[0].values(), found[1].values(), strict=True))


def test_full_is_the_default_and_float32(fit):
    module = Watched(seeded(net))
    fit(module, BATCHES[:1], SharpnessAware(RHO), precision="bf16-mixed")
    assert set(module.dtypes) == {torch.float32}


def test_the_gradient_is_that_of_float64_to_bfloat16s_rounding():
    x, y = BATCHES[0]
    exact = naive_sam(seeded(net).double(), x.double(), y, RHO, dtype=torch.float64)
    module, errors = seeded(net), {}
    for precise in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            found = sharpness(module, x, y, RHO, loss_shares=[1.0], precise=precise)
        errors[precise] = distance([a + b for a, b in zip(found.loss_gradient, found.gradient, strict=True)], exact)
    assert errors[True] < 1e-5
    assert 1e-4 < errors[False] < 5e-2


class Checkpointed(nn.Module):
    """Runs again in the backward pass, under the autocast of its forward pass."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.SiLU()), nn.Linear(16, 3)

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(lambda z: self.second(self.first(z)), x, use_reentrant=False)


@pytest.mark.parametrize("factory", [net, Checkpointed])
def test_autocast_keeps_no_weights_of_a_pass(factory):
    """The cast weights that autocast keeps are those of the weights as they are, before and after."""
    x, y = BATCHES[0]
    module = seeded(factory)
    with torch.autocast("cpu", torch.bfloat16):
        before = F.cross_entropy(module.eval()(x), y)
        sharpness(module, x, y, 10.0)
        after = F.cross_entropy(module(x), y)
    assert torch.equal(before, after)


def test_a_backward_pass_is_not_under_autocast():
    """A product of the backward pass whose forward one left autocast is in float32, as in a training."""

    class Leaves(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(-1, 1, 36 * 3).reshape(36, 3))

        def forward(self, x):
            with torch.autocast("cpu", enabled=False):
                return x.flatten(1).float() @ self.weight

    x, y = BATCHES[0]
    module = Leaves()
    with torch.autocast("cpu", torch.bfloat16):
        found = sharpness(module, x, y, 0.0, loss_shares=[1.0])
    assert torch.equal(found.loss_gradient[0], gradient_of(module, x, y)[0])


class Half(Classifier):
    """Computes in bfloat16 by itself."""

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).float()


def test_a_module_in_half_precision_of_its_own(fit):
    """Refused in full precision, which it doesn't have; the Trainer's is what its step is in."""
    with pytest.raises(ValueError, match="bfloat16"):
        fit(Half(seeded(net)), BATCHES, SharpnessAware(RHO))
    module = Half(seeded(net))
    fit(module, BATCHES, SharpnessAware(RHO, precision="trainer"))
    expected = trained()
    for name, value in module.net.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_refusals(fit):
    with pytest.raises(ValueError, match=r"`precision` to be one of .*'full', 'trainer'.*but got 'bf16'"):
        SharpnessAware(precision="bf16")
    with pytest.raises(ValueError, match=r"`precision` to be .full. for FisherPenalty.*but got 'trainer'"):
        FisherPenalty(precision="trainer")

    class Short(MultiPassCallback):
        differentiates = True

    with pytest.raises(ValueError, match=r'`precision` to be "full" for Short'):
        Short(precision="trainer")


@pytest.mark.parametrize("passes", ["vmap", "auto"])
def test_refuses_vmap_which_is_in_full_precision(passes):
    with pytest.raises(ValueError, match=f'`passes` to be "loop" with `precision="trainer"`.*but got {passes!r}'):
        SharpnessAware(passes=passes, precision="trainer")


def test_refuses_the_trainers_loss_scaling(fit):
    from lightning.pytorch.plugins import MixedPrecision

    scaled = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(ValueError, match=r'`precision` to be "full" where the Trainer scales losses.*16-mixed'):
        fit(Watched(seeded(net)), BATCHES, SharpnessAware(RHO, precision="trainer"), plugins=scaled)


@pytest.mark.parametrize(("precision", "compiled_passes"), [("full", False), ("trainer", True)])
def test_a_compiled_network_runs_compiled_in_the_trainers_precision_only(fit, precision, compiled_passes):
    """And the weights are those without `torch.compile`, bit for bit with a backend that changes nothing."""
    runs = Ledger()

    def counting(graph, inputs):
        def run(*given):
            runs.append(1)
            return graph(*given)

        return run

    plain, compiled = Watched(seeded(net)), Watched(seeded(net))
    compiled.net.compile(backend=counting)
    for module in (plain, compiled):
        fit(module, BATCHES, SharpnessAware(RHO, precision=precision), precision="bf16-mixed")
    passes = len(compiled.dtypes)
    assert passes >= 2 * len(BATCHES)
    assert len(runs) == (passes if compiled_passes else 0)
    for name, value in plain.net.state_dict().items():
        assert torch.equal(value, compiled.net.state_dict()[name]), name


def test_compiled_passes_share_their_dropout_masks(fit):
    """Inductor draws masks of its own: at ρ so small that it moves nothing, SAM's step is the plain one."""

    def dropping():
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 3))

    found = []
    for callbacks in ([], [SharpnessAware(1e-12, precision="trainer")]):
        module = Classifier(seeded(dropping))
        module.net.compile()
        torch.manual_seed(5)
        fit(module, BATCHES, *callbacks)
        found.append(module.net.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-5, atol=1e-6)
