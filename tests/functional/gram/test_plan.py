"""What is found out about a module is found out once, kept as long as it lives, and thrown away when it changes."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from lightning_fisher import FisherMetric
from lightning_fisher.functional import gram_matrix
from lightning_fisher.functional.gram import plan
from tests.functional.compare import gram_error
from tests.functional.gram.unusual import CHOSEN_BY_DATA
from tests.reference.jacobian import gram, jacobian

N = 10
SIZES = []  # not an attribute of the module: those are put back


class Net(nn.Module):
    """Notes the size of every batch."""

    def __init__(self):
        super().__init__()
        self.body, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
        self.bend = torch.tanh

    def forward(self, x):
        SIZES.append(len(x))
        return self.out(self.bend(self.body(x)))


FIRST, LATER = [2, N, N // 2, N // 2, 1], [N]  # a few, all, all and one to verify


def batch(seed=0, n=N):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=generator).double(), torch.randint(3, (n,), generator=generator)


def sizes_of_a_call(module, *samples):
    """Check ξ, and return the sizes of the batches it took."""
    x, y = samples or batch()
    expected = gram(jacobian(module, x, y))
    SIZES.clear()
    assert gram_error(gram_matrix(module, x, y), expected) < 1e-9
    return list(SIZES)


@pytest.fixture
def module():
    torch.manual_seed(0)
    return Net().double()


def test_later_subsets_take_one_pass(module):
    assert sizes_of_a_call(module, *batch(0)) == FIRST
    for seed in range(1, 4):
        assert sizes_of_a_call(module, *batch(seed)) == LATER


@pytest.mark.parametrize("scale", ["layer", "filter", "element"])
def test_gradients_with_a_scale_are_verified_at_that_scale(module, scale):
    for sizes in (FIRST, LATER):
        SIZES.clear()
        gram_matrix(module, *batch(), scale=scale)
        assert sizes == SIZES  # nothing to be settled in float64


def test_a_buffer_that_a_pass_moves_is_no_other_pass():
    class Counting(Net):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(8))

        def forward(self, x):
            SIZES.append(len(x))
            h = self.bend(self.body(x))
            self.mean.mul_(0.9).add_(0.1 * h.detach()[0])
            return self.out(h)

    torch.manual_seed(0)
    module = Counting().double()
    assert sizes_of_a_call(module) == FIRST
    assert sizes_of_a_call(module, *batch(1)) == LATER
    assert module.mean.abs().max() == 0


def test_weights_may_change(module):
    sizes_of_a_call(module)
    with torch.no_grad():
        module.body.weight.mul_(2)
        module.out.bias.add_(1)
    module.train()
    assert sizes_of_a_call(module) == LATER


def test_a_metric_over_subsets(module):
    SIZES.clear()
    metric = FisherMetric()
    for seed in range(3):
        metric.update(module, *batch(seed))
    assert SIZES == FIRST + 2 * LATER


def freeze(module):
    module.body.bias.requires_grad_(False)


def replace_a_layer(module):
    module.body = nn.Linear(6, 8).double()


def replace_a_parameter(module):
    module.body.weight = nn.Parameter(module.body.weight.detach().clone())


def tie(module):
    module.body.bias = nn.Parameter(module.body.bias.detach()[:8].clone())


def add_a_hook(module):
    module.body.register_forward_hook(lambda layer, inputs, output: 2 * output)


def add_another_hook(module):
    module.out.register_forward_pre_hook(lambda layer, inputs: (3 * inputs[0],))


def other_function(module):
    module.bend = torch.sigmoid


CHANGES = [freeze, replace_a_layer, replace_a_parameter, tie, add_a_hook, add_another_hook, other_function]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_module_makes_a_new_plan(change, module):
    sizes_of_a_call(module)
    change(module)
    made = sizes_of_a_call(module)
    assert made[-len(FIRST) :] == FIRST
    assert sizes_of_a_call(module) == LATER


def test_a_hook_on_a_parameter_makes_a_new_plan(module):
    sizes_of_a_call(module)
    handle = module.body.weight.register_hook(lambda gradient: 0 * gradient)
    x, y = batch()
    SIZES.clear()
    without = gram_matrix(module, x, y)
    assert SIZES[:2] == FIRST[:2]
    handle.remove()
    assert gram_error(gram_matrix(module, x, y), without) > 1e-2


def test_samples_of_another_structure_have_a_plan_of_their_own(module):
    sizes_of_a_call(module)
    assert sizes_of_a_call(module, *batch(1, n=7)) == [2, 7, 4, 3, 1]
    assert sizes_of_a_call(module) == LATER
    assert sizes_of_a_call(module, *batch(2, n=7)) == [7]


def test_another_precision_has_a_plan_of_its_own(module):
    sizes_of_a_call(module)
    x, y = batch()
    module.float()
    SIZES.clear()
    gram_matrix(module, x.float(), y)
    assert SIZES == FIRST


def test_samples_that_begin_to_interact_are_refused(module):
    sizes_of_a_call(module)
    module.bend = lambda h: torch.tanh(h - h.mean(0))
    with pytest.raises(ValueError, match="interact"):
        gram_matrix(module, *batch())


def test_rows_chosen_by_data_are_verified_in_every_call():
    for name in ("ragged", "top-1 experts"):
        torch.manual_seed(0)
        module, inputs, targets, _ = CHOSEN_BY_DATA[name]()
        sizes = []
        module.register_forward_pre_hook(lambda layer, args, sizes=sizes: sizes.append(len(args[0])))
        gram_matrix(module, inputs, targets)
        sizes.clear()
        gram_matrix(module, inputs, targets)
        assert sizes.count(4) >= 2 or sizes == [1] * 8 + [8], name  # both halves; one by one and together


def test_a_layout_that_could_be_another_is_not_kept():
    """Rows that are all alike, behind a layer of zeros, say nothing about their order."""

    class Transposed(nn.Module):
        def __init__(self):
            super().__init__()
            self.zero, self.body, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
            nn.init.zeros_(self.zero.weight)
            nn.init.zeros_(self.zero.bias)

        def forward(self, x):
            rows = self.zero(x).transpose(0, 1).reshape(-1, 6)
            return self.out(torch.tanh(self.body(rows)).view(x.shape[1], -1, 6).mean(0))

    torch.manual_seed(0)
    module, x, y = Transposed().double(), torch.randn(N, 4, 6).double(), torch.arange(N) % 3
    gram_matrix(module, x, y)
    nn.init.normal_(module.zero.weight)
    assert gram_error(gram_matrix(module, x, y), gram(jacobian(module, x, y))) < 1e-9


def test_plans_die_with_their_modules(module):
    gc.collect()
    before = len(plan._PLANS)
    gram_matrix(module, *batch())
    assert len(plan._PLANS) == before + 1
    del module


def test_nothing_is_left_of_dead_modules():
    gc.collect()
    before = len(plan._PLANS)
    for _ in range(3):
        gram_matrix(Net().double(), *batch())
    gc.collect()
    assert len(plan._PLANS) <= before


def test_the_number_of_plans_is_bounded(module):
    for n in range(2, 20):
        gram_matrix(module, *batch(n=n))
    assert len(plan._PLANS[module]) == plan.KEPT


def test_refused_modules_are_refused_again(module):
    module.bend = lambda h: torch.tanh(h - h.mean(0))
    for _ in range(2):
        with pytest.raises(ValueError, match="interact"):
            gram_matrix(module, *batch())
