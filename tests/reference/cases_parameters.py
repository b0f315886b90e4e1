"""Cases of parameters a layer-by-layer method can miss: raw, shared, reparametrized, frozen, unused."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.reference import modules as m
from tests.reference.case import Case, normal, tokens
from tests.reference.cases_conv import IMAGES, net
from tests.reference.cases_linear import SEQUENCES, VECTORS, mlp, over_tokens


def used_twice(self, x):
    return self.out(torch.tanh(self.body(torch.tanh(self.body(x)))))


def two_heads(self, x):
    """The second application sees another layout: tokens, then their mean."""
    return self.out(self.body(x).tanh().mean(1) + self.body(x.mean(1)))


def convs_sharing_a_weight():
    first, second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, stride=2)
    second.weight = first.weight
    return net(nn.Conv2d(2, 4, 1), first, nn.Tanh(), second)


def norm_used_twice():
    norm = nn.BatchNorm2d(4)
    return net(nn.Conv2d(2, 4, 3), norm, nn.Tanh(), nn.Conv2d(4, 4, 1), norm)


def attention_used_twice():
    layer = m.SelfAttention(6, 6, True)
    forward = lambda self, x: self.out(self.f(x) - 0.5 * self.f(x.flip(1) ** 2))  # noqa: E731
    return m.Lambda(forward, f=layer, out=nn.Linear(6, 3))


def raw_scale_and_shift():
    return m.Lambda(
        lambda self, x: self.out(torch.tanh(self.body(x)) * self.scale + self.shift),
        {"scale": torch.randn(8), "shift": torch.randn(1, 8)},
        body=nn.Linear(6, 8),
        out=nn.Linear(8, 3),
    )


def class_token(self, x):
    x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
    return self.out(torch.tanh(self.body(x)).mean(1))


def codebook_of_n_rows(self, x):
    """A layer applied to a constant of N rows that have nothing to do with the N samples."""
    return x @ torch.tanh(self.body(self.rows)).T @ self.mix


def constant_gate(self, x):
    return self.out(x * torch.sigmoid(self.gate(torch.ones(1, 4, dtype=x.dtype, device=x.device))))


def detached_branch(self, x):
    """The layer runs once more where no gradient may flow."""
    with torch.no_grad():
        offset = self.body(x) ** 2
    return self.out(self.body(x) + offset + self.body(2 * x).detach())


def row_by_row(self, x):
    """The layer is called once a sample, on a vector without a batch dimension."""
    return self.out(torch.stack([self.body(row) for row in x]).tanh())


def accumulated_in_place(self, x):
    return self.out(self.left(x).add_(self.right(x)).relu_())


def with_unused(module):
    """Parameters, raw and of a layer, that the forward pass never meets."""
    forward = lambda self, x: self.used(x)  # noqa: E731
    return m.Lambda(forward, {"never": torch.randn(3)}, used=module, unused=nn.Linear(2, 2))


def module_and_functional(self, x):
    """The layer is called, and its weight is used once more beside the call."""
    return self.out(torch.tanh(self.body(x)) + F.linear(x, self.body.weight.T))


PARAMETER_CASES = [
    Case("module_used_twice", lambda: m.Lambda(used_twice, body=nn.Linear(6, 6), out=nn.Linear(6, 3)), VECTORS),
    Case(
        "module_used_twice_layouts",
        lambda: m.Lambda(two_heads, body=nn.Linear(6, 6), out=nn.Linear(6, 3)),
        SEQUENCES,
    ),
    Case("convs_sharing_a_weight", convs_sharing_a_weight, IMAGES),
    Case("batch_norm_used_twice", norm_used_twice, IMAGES),
    Case("attention_used_twice", attention_used_twice, SEQUENCES),
    Case("tied_embedding", lambda: m.TiedLanguageModel(7, 6, functional=False), tokens()),
    Case("tied_embedding_functional", lambda: m.TiedLanguageModel(7, 6, functional=True), tokens()),
    Case(
        "module_and_functional",
        lambda: m.Lambda(module_and_functional, body=nn.Linear(6, 6), out=nn.Linear(6, 3)),
        VECTORS,
    ),
    Case("functional_only", lambda: m.FunctionalUse(3), IMAGES),
    Case("raw_parameters", raw_scale_and_shift, VECTORS),
    Case(
        "raw_class_token",
        lambda: m.Lambda(class_token, {"token": torch.randn(1, 1, 6)}, body=nn.Linear(6, 6), out=nn.Linear(6, 3)),
        SEQUENCES,
    ),
    Case(
        "codebook_of_n_rows",
        lambda: m.Lambda(
            codebook_of_n_rows, {"rows": torch.randn(5, 4), "mix": torch.randn(5, 3)}, body=nn.Linear(4, 6)
        ),
        VECTORS,
    ),
    Case("constant_gate", lambda: m.Lambda(constant_gate, gate=nn.Linear(4, 6), out=nn.Linear(6, 3)), VECTORS),
    Case(
        "einsum",
        lambda: m.Lambda(lambda self, x: torch.einsum("nlf,fk->nk", x, self.weight), {"weight": torch.randn(6, 3)}),
        SEQUENCES,
    ),
    Case(
        "autograd_function",
        lambda: m.Lambda(
            lambda self, x: self.out(torch.tanh(m.MatrixProduct.apply(x, self.body.weight))),
            body=nn.Linear(6, 8),
            out=nn.Linear(8, 3),
        ),
        VECTORS,
    ),
    Case("detached_branch", lambda: m.Lambda(detached_branch, body=nn.Linear(6, 6), out=nn.Linear(6, 3)), VECTORS),
    Case("row_by_row", lambda: m.Lambda(row_by_row, body=nn.Linear(6, 6), out=nn.Linear(6, 3)), VECTORS),
    Case(
        "accumulated_in_place",
        lambda: m.Lambda(accumulated_in_place, left=nn.Linear(6, 8), right=nn.Linear(6, 8), out=nn.Linear(8, 3)),
        VECTORS,
    ),
    Case("weight_norm", lambda: nn.Sequential(m.weight_norm(nn.Linear(6, 8)), nn.Linear(8, 3)), VECTORS),
    Case("weight_norm_conv", lambda: net(m.weight_norm(nn.Conv2d(2, 4, 3))), IMAGES),
    Case("spectral_norm", lambda: nn.Sequential(m.spectral_norm(nn.Linear(6, 8)), nn.Linear(8, 3)), VECTORS),
    Case("subclass_of_linear", lambda: nn.Sequential(m.DoublingLinear(6, 8), nn.Linear(8, 3)), VECTORS),
    Case("subclass_of_conv", lambda: net(m.StandardizedConv(2, 4, 3)), IMAGES),
    Case("output_hook", lambda: mlp(m.with_output_hook(nn.Linear(8, 8), 3.0)), VECTORS),
    Case("input_hook", lambda: mlp(m.with_input_hook(nn.Linear(8, 8), 3.0)), VECTORS),
    Case("checkpointed", lambda: m.Checkpointed(mlp(nn.Dropout(0.5)), nn.Linear(3, 3)), VECTORS, train=True),
    Case(
        "checkpointed_in_the_middle",
        lambda: nn.Sequential(nn.Linear(6, 6), m.Checkpointed(mlp(), nn.Linear(3, 3))),
        VECTORS,
    ),
    Case("frozen_body", lambda: m.freeze(mlp(), "0.weight", "0.bias"), VECTORS),
    Case("frozen_weight", lambda: m.freeze(mlp(), "0.weight", "2.weight"), VECTORS),
    Case("frozen_bias", lambda: m.freeze(net(nn.Conv2d(2, 4, 3)), "0.bias"), IMAGES),
    Case(
        "frozen_attention",
        lambda: m.freeze(
            over_tokens(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)),
            "0.self_attn.in_proj_weight",
            "0.self_attn.out_proj.bias",
        ),
        SEQUENCES,
    ),
    Case("unused_parameters", lambda: with_unused(mlp()), VECTORS),
    Case("identity_input_width_n", lambda: nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3)), normal(5, 5)),
]
