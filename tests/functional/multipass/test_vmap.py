"""`passes="vmap"` against Algorithm 1 in plain loops on copies of the module: right, or refused in one line."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_fisher.functional import penalty_gradient, penalty_of_losses, regularized_gradient
from lightning_fisher.functional.multipass.difference import FiniteDifference
from lightning_fisher.functional.multipass.sub_batches import draw_perturbed
from lightning_fisher.functional.multipass.vmap.penalty import penalty_by_vmap
from lightning_fisher.functional.multipass.vmap.stacked import VmapError
from tests.functional.compare import cosine, gradient_error
from tests.functional.snapshot import changes, snapshot
from tests.reference.cases import BATCH_NORM_CASES, BATCH_STATISTICS, CASES, RIGHT_OR_REFUSED, by_name, each
from tests.reference.cases_refused import DENOMINATORS
from tests.reference.penalty import penalty, sub_batch_gradients
from tests.reference.regularized_forms import step_gradient
from tests.reference.samples import take

# What vmap can't do today: recurrent layers, checkpointing, nested and sparse tensors, values that steer.
REFUSED = {
    "autograd_function",
    "checkpointed",
    "checkpointed_in_the_middle",
    "embedding_max_norm",
    "embedding_sparse",
    "gru_bidirectional",
    "gru_packed",
    "lstm",
    "lstm_cell",
    "lstm_time_first",
    "routed_experts",
    "transformer_padding",
}
REFUSED_IN_TRAINING = {"batch_norm2d_cumulative", "spectral_norm"}  # these ask for a number, or write into a buffer


def even(case):
    """A case with a number of samples that two sub-batches share."""
    module, inputs, targets = case.build()
    kept = slice(0, len(targets) - len(targets) % 2)
    return module, take(inputs, kept), targets[kept]


@each([case for case in (*CASES, *RIGHT_OR_REFUSED) if len(case.build()[2]) > 1])
@pytest.mark.parametrize("alpha", [1e-2, 1e-4])
def test_float64_in_evaluation_mode(case, alpha):
    module, inputs, targets = even(case)
    module.eval()
    options = {"alpha": alpha, "num_sub_batches": 2, "loss_fn": case.loss_fn}
    value, gradient = penalty(module, inputs, targets, denominator=DENOMINATORS.get(case.name), **options)
    if case.name in REFUSED:
        with pytest.raises(ValueError) as caught:
            penalty_gradient(module, inputs, targets, passes="vmap", **options)
        assert "\n" not in str(caught.value)
        return
    got_value, got = penalty_gradient(module, inputs, targets, passes="vmap", **options)
    assert got_value.item() == pytest.approx(value, rel=1e-9)
    assert [g.shape for g in got] == [p.shape for p in module.parameters()]
    assert gradient_error(got, gradient) < 1e-9


@each([*BATCH_NORM_CASES, BATCH_STATISTICS, by_name("instance_norm_tracked"), by_name("spectral_norm")])
def test_float64_with_batch_statistics(case):
    """Every sub-batch by itself, from the same buffers."""
    module, inputs, targets = even(case)
    module.train()
    for submodule in module.modules():
        if isinstance(submodule, nn.Dropout):
            submodule.eval()
    options = {"alpha": 1e-3, "num_sub_batches": 2}
    value, gradient = penalty(module, inputs, targets, **options)
    if case.name in REFUSED_IN_TRAINING:
        with pytest.raises(ValueError):
            penalty_gradient(module, inputs, targets, passes="vmap", **options)
        return
    got_value, got = penalty_gradient(module, inputs, targets, passes="vmap", **options)
    assert got_value.item() == pytest.approx(value, rel=1e-9)
    assert gradient_error(got, gradient) < 1e-9


def network(*more):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), *more, nn.Flatten(), nn.LazyLinear(3)
    )


def images(count=16):
    return torch.randn(count, 1, 6, 6), torch.randint(3, (count,))


def built(net, x):
    net(x[:2])
    return net


def test_nothing_is_left_behind():
    x, y = images()
    net = built(network(nn.Dropout(0.5)), x).train()
    before = snapshot(net)
    penalty_gradient(net, x, y, num_sub_batches=4, passes="vmap")
    assert changes(before, snapshot(net)) == []


def test_nothing_is_left_behind_where_a_layer_is_held_twice():
    module, inputs, targets = even(by_name("batch_norm_used_twice"))
    before = snapshot(module)
    penalty_gradient(module, inputs, targets, num_sub_batches=2, passes="vmap")
    assert changes(before, snapshot(module)) == []


def test_nothing_is_left_behind_by_a_failure():
    x, y = images()

    class Steered(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = built(network(), x)

        def forward(self, x):
            out = self.net(x)
            return out if out.sum().item() > 0 else -out

    net = Steered().train()
    before = snapshot(net)
    with pytest.raises(ValueError, match=r'`passes="vmap"`.*choose "loop"') as caught:
        penalty_gradient(net, x, y, num_sub_batches=4, passes="vmap")
    assert "\n" not in str(caught.value)
    assert changes(before, snapshot(net)) == []


@pytest.mark.parametrize("num_sub_batches", [1, 2, 8])
def test_two_passes_whatever_m(num_sub_batches):
    x, y = images()
    net, calls = built(network(), x), []
    net.register_forward_hook(lambda *_: calls.append(1))
    penalty_gradient(net, x, y, num_sub_batches=num_sub_batches, passes="vmap")
    assert len(calls) == 4  # one sub-batch in two ordinary passes, too, the first time
    penalty_gradient(net, x, y, num_sub_batches=num_sub_batches, passes="vmap")
    assert len(calls) == 6


def test_float32_is_near_the_exact_difference():
    x, y = images()
    net = built(network(), x).train()
    options = {"alpha": 1e-4, "num_sub_batches": 4}
    _, exact = penalty(net.double(), x.double(), y, **options)
    _, got = penalty_gradient(net.float(), x, y, passes="vmap", **options)
    assert cosine(got, exact) > 0.99


def test_dropout_masks_differ_among_samples_and_are_shared_by_the_two_passes():
    """``R ≈ α/M Σ ‖g_i‖²`` with one mask for both; with others it would be a difference of two losses."""
    x = torch.ones(16, 6, dtype=torch.float64)
    y = torch.zeros(16, dtype=torch.long)
    seen = []
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3)).double()

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(unwrapped(x).clone())
            return x

    net.insert(1, Spy())

    def unwrapped(x):
        while torch._C._functorch.is_functorch_wrapped_tensor(x):
            x = torch._C._functorch.get_unwrapped(x)
        return x

    torch.manual_seed(0)
    value, _ = penalty_gradient(net, x, y, alpha=1e-6, num_sub_batches=4, passes="vmap")
    first, second = (x for x in map(unwrapped, seen) if x.ndim == 3)  # the others are of one sub-batch, to compare with
    assert torch.equal(first, second)
    assert len({tuple(row) for row in first.reshape(-1, 6).tolist()}) > 8
    assert 0 < value.item() < 1e-5


def test_parameters_that_get_no_gradient():
    """``None`` as in the loop: an optimizer must not decay what isn't used."""
    x, y = images(8)

    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.frozen = nn.Linear(36, 3), nn.Linear(36, 3), nn.Linear(3, 3)
            self.frozen.requires_grad_(False)

        def forward(self, x):
            return self.frozen(self.used(x.flatten(1)))

    net = Partly().double()
    trainable = [p for p in net.parameters() if p.requires_grad]
    batches = list(zip(x.double().split(4), y.split(4), strict=True))
    loss = lambda batch: cross_entropy(net(batch[0]), batch[1])  # noqa: E731
    found = penalty_by_vmap(loss, batches, trainable, difference=FiniteDifference(1e-3), weight=0.5, module=net)
    assert [g is None for g in found.gradient] == [False, False, True, True]
    expected = penalty_of_losses(
        [lambda batch=batch: loss(batch) for batch in batches],
        trainable,
        alpha=1e-3,
        weights=[0.5, 0.5],
        module=net,
    )
    assert gradient_error(found.gradient[:2], expected.gradient[:2]) < 1e-9
    gradients, _ = sub_batch_gradients(net, x.double(), y, 2)
    norms = torch.stack([torch.cat([g.flatten() for g in part]).norm() for part in gradients])
    assert found.divergence.norm_variance.item() == pytest.approx(norms.var(correction=0).item(), rel=1e-9)
    assert found.divergence.cosine.item() == pytest.approx(expected.divergence.cosine.item(), rel=1e-9)


def test_a_loss_without_a_gradient_is_refused():
    net = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="depends on the trainable parameters"):
        penalty_by_vmap(
            lambda batch: batch.sum(),
            [torch.ones(2), torch.ones(2)],
            [*net.parameters()],
            difference=FiniteDifference(1.0),
            weight=1.0,
            module=net,
        )


@pytest.mark.parametrize(
    "batches",
    [
        [(torch.ones(2, 3), 1), (torch.ones(2, 3), 2)],
        [(torch.ones(2, 3),), (torch.ones(3, 3),)],
        [(torch.ones(2, 3),), [torch.ones(2, 3)]],
        [(torch.ones(2, 3), object()), (torch.ones(2, 3), object())],
    ],
    ids=["numbers", "sizes", "structures", "objects"],
)
def test_batches_that_cannot_be_stacked(batches):
    net = nn.Linear(3, 2)
    with pytest.raises(VmapError, match=r"the sub-batches (differ|hold objects)"):
        penalty_by_vmap(
            lambda b: net(b[0]).sum(),
            batches,
            [*net.parameters()],
            difference=FiniteDifference(1.0),
            weight=1.0,
            module=net,
        )


def test_sub_batches_of_different_sizes_are_evaluated_in_a_loop():
    x, y = images(18)
    net, calls = built(network(), x).double(), []
    x = x.double()
    value, gradient = penalty(net, x, y, alpha=1e-3, num_sub_batches=4)
    net.register_forward_hook(lambda *_: calls.append(1))
    got_value, got = penalty_gradient(net, x, y, alpha=1e-3, num_sub_batches=4, passes="vmap")
    assert len(calls) == 8
    assert got_value.item() == pytest.approx(value, rel=1e-9)
    assert gradient_error(got, gradient) < 1e-9


@pytest.mark.parametrize("perturbed", [None, 1, 2])
def test_regularized_gradient(perturbed):
    x, y = images()
    net = built(network(), x).double().train()
    x = x.double()
    flags = draw_perturbed(4, perturbed, torch.Generator().manual_seed(5))
    twin = built(network(), x.float()).double().train()
    twin.load_state_dict(net.state_dict())
    loss, value, expected = step_gradient(
        twin, x, y, beta=7.0, alpha=1e-3, num_sub_batches=4, gradient="full", flags=flags
    )
    options = {"beta": 7.0, "alpha": 1e-3, "num_sub_batches": 4, "perturbed": perturbed}
    got = regularized_gradient(net, x, y, passes="vmap", generator=torch.Generator().manual_seed(5), **options)
    assert gradient_error(got.gradient, expected) < 1e-9
    assert got.penalty.item() == pytest.approx(value, rel=1e-9)
    assert got.loss.item() == pytest.approx(loss, rel=1e-12)
    assert all(torch.allclose(a.double(), b.double()) for a, b in zip(net.buffers(), twin.buffers(), strict=True))


@pytest.mark.parametrize("passes", ["auto", "both", None, 1])
def test_only_forms_there_are(passes):
    net = nn.Linear(3, 2)
    for function, more in ((penalty_gradient, {}), (regularized_gradient, {"beta": 1.0})):
        with pytest.raises(ValueError, match=r"`passes` to be one of \('loop', 'vmap'\)"):
            function(net, torch.ones(4, 3), torch.zeros(4, dtype=torch.long), num_sub_batches=2, passes=passes, **more)


def test_not_with_the_shared_gradient():
    with pytest.raises(ValueError, match=r'`passes`.*`gradient="shared"`'):
        regularized_gradient(
            nn.Linear(3, 2),
            torch.ones(4, 3),
            torch.zeros(4, dtype=torch.long),
            beta=1.0,
            num_sub_batches=2,
            gradient="shared",
            passes="vmap",
        )
