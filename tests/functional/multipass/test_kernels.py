"""All passes of a penalty run what the module runs by itself; gradients are tensors of their own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_fisher.functional import hessian_frobenius_norm, penalty_gradient, regularized_gradient
from tests.functional.compare import gradient_error
from tests.reference import plain

N = 6
Y = torch.tensor([0, 1, 2, 1, 0, 2])
PAD = torch.zeros(N, 4, dtype=torch.bool)
PAD[0, 2:] = PAD[3, 1:] = True
PAD[::2, 3] = True
TOKENS = torch.randn(N, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Encoded(nn.Module):
    """A head on a frozen encoder, whose fused kernel returns zeros for what is padded."""

    def __init__(self, encoder):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.e, self.o = encoder().requires_grad_(False), nn.Linear(6, 3)

    def forward(self, x, mask):
        return self.o(self.e(x, src_key_padding_mask=mask).mean(1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x, src_key_padding_mask):
        return self.a(x, x, x, key_padding_mask=src_key_padding_mask, need_weights=False)[0]


def layer():
    return nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)


ENCODERS = {
    "encoder": lambda: nn.TransformerEncoder(layer(), 2),
    "layer": layer,
    "attention": Attention,
    "norm_first": lambda: nn.TransformerEncoderLayer(6, 2, 12, batch_first=True, norm_first=True),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
@pytest.mark.parametrize("num_sub_batches", [1, 3])
def test_frozen_attention_with_padding(encoder, num_sub_batches):
    module, inputs = Encoded(encoder).eval().double(), (TOKENS, PAD)
    size = N // num_sub_batches
    parts = [slice(i, i + size) for i in range(0, N, size)]
    value, gradient = plain.penalty(
        module, inputs, Y, parts, [1 / num_sub_batches] * num_sub_batches, 1e-4, cross_entropy
    )
    got, got_gradient = penalty_gradient(module, inputs, Y, num_sub_batches=num_sub_batches)
    assert got.item() == pytest.approx(value, rel=1e-5)
    trained = [g for g, p in zip(got_gradient, module.parameters(), strict=True) if p.requires_grad]
    assert gradient_error(trained, gradient) < 1e-5
    for form in ("full", "shared"):
        step = regularized_gradient(module, inputs, Y, beta=1.0, num_sub_batches=num_sub_batches, gradient=form)
        assert step.penalty.item() == pytest.approx(value, rel=1e-5)
    expected = plain.hessian(module, inputs, Y, cross_entropy).square().sum().item()
    for chunk_size in (None, 4):
        norm = hessian_frobenius_norm(module, inputs, Y, num_probes=10**6, chunk_size=chunk_size)
        assert norm.value.item() == pytest.approx(expected, rel=1e-9)


class HalfInside(nn.Module):
    """Computes in half precision between its trainable parameters and the loss, without autocast."""

    def __init__(self, frozen_first):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)
        self.frozen_first = frozen_first
        if frozen_first:
            self.a.requires_grad_(False)

    def forward(self, x):
        if self.frozen_first:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                x = self.a(x)
            return self.b(x.float())
        return self.b(torch.tanh(self.a(x)).bfloat16().float())


@pytest.mark.parametrize("passes", ["loop", "vmap"])
def test_half_precision_where_gradients_pass_is_refused(passes):
    torch.manual_seed(0)
    x = torch.randn(N, 6)
    with pytest.raises(ValueError, match="Expected a forward pass in float32 or float64"):
        penalty_gradient(HalfInside(False), x, Y, num_sub_batches=3, passes=passes)
    module = HalfInside(True)  # no gradient passes: the same numbers in all passes
    value, _ = plain.penalty(module, x, Y, [slice(0, 2), slice(2, 4), slice(4, 6)], [1 / 3] * 3, 1e-1, cross_entropy)
    got, _ = penalty_gradient(module, x, Y, num_sub_batches=3, passes=passes, alpha=1e-1)
    assert got.item() == pytest.approx(value, rel=1e-3)


class OneGradientForTwo(nn.Module):
    """Autograd returns one expanded tensor as the gradient of both parameters."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(4))
        self.unused = nn.Parameter(torch.ones(2, 3))

    def forward(self, x):
        return x + (self.a + self.b).sum()


def partly_frozen():
    module = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    module[0].requires_grad_(False)
    return module


@pytest.mark.parametrize("build", [OneGradientForTwo, partly_frozen])
@pytest.mark.parametrize("beta", [0.0, 10.0])
@pytest.mark.parametrize("form", ["full", "shared"])
def test_gradients_can_be_clipped(build, beta, form):
    torch.manual_seed(0)
    module, x = build(), torch.randn(N, 6)
    step = regularized_gradient(
        module, x, Y, beta=beta, num_sub_batches=2, gradient=form, loss_fn=lambda o, y: o.square().mean()
    )
    _, penalty = penalty_gradient(module, x, Y, num_sub_batches=2)
    for gradient in (step.gradient, penalty):
        assert len({g.untyped_storage().data_ptr() for g in gradient}) == len(gradient)
        for parameter, g in zip(module.parameters(), gradient, strict=True):
            assert not g.requires_grad
            assert g.shape == parameter.shape
            parameter.requires_grad_().grad = g
        before = torch.cat([g.flatten() for g in gradient]).norm()
        norm = nn.utils.clip_grad_norm_(module.parameters(), 1e-3)
        assert norm.item() == pytest.approx(before.item(), rel=1e-5)
        assert torch.cat([p.grad.flatten() for p in module.parameters()]).norm() <= 1.001e-3
        torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9).step()
