"""Cases of linear layers: every layout in which a sample can reach one."""

from __future__ import annotations

import torch
from torch import nn

from tests.reference import modules as m
from tests.reference.case import Case, classes, normal

VECTORS, SEQUENCES = normal(5, 6), normal(5, 4, 6)


def mlp(*middle):
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), *middle, nn.Linear(8, 3))


def over_tokens(*layers):
    """Layers over ``[N, L, 6]``, then the mean over L."""
    return nn.Sequential(*layers, nn.Tanh(), m.Apply(lambda x: x.mean(1)), nn.Linear(6, 3))


def folded(self, x):
    """The tokens of all samples folded into one long batch: sample j has the rows j L ... j L + L - 1."""
    return self.out(torch.tanh(self.body(x.reshape(-1, x.shape[-1]))).view(x.shape).mean(1))


def siamese(self, left, right):
    """Both inputs as one batch of 2 N: sample j has the rows j and N + j."""
    a, b = self.body(torch.cat([left, right])).chunk(2)
    return a - 2 * b


def sorted_rows(self, x):
    """The samples pass the layer in another order, as before a packed sequence."""
    order = x.norm(dim=1).argsort()
    return self.out(torch.tanh(self.body(x[order]))[order.argsort()])


def routed(self, x):
    """A mixture of experts: each sees only the samples routed to it."""
    first = x[:, :1] > 0
    out = torch.zeros(len(x), 8, dtype=x.dtype, device=x.device)
    out[first[:, 0]] = self.left(x[first[:, 0]])
    out[~first[:, 0]] = self.right(x[~first[:, 0]])
    return self.out(torch.tanh(out))


LINEAR_CASES = [
    Case("linear", lambda: nn.Linear(6, 3), VECTORS),
    Case("mlp", mlp, VECTORS),
    Case(
        "mlp_no_bias",
        lambda: nn.Sequential(nn.Linear(6, 8, bias=False), nn.SiLU(), nn.Linear(8, 3, bias=False)),
        VECTORS,
    ),
    Case(
        "mlp_relu_inplace",
        lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)),
        VECTORS,
    ),
    Case("mlp_dropout", lambda: mlp(nn.Dropout(0.5)), VECTORS, train=True),
    Case("mlp_one_sample", mlp, normal(1, 6), classes(1)),
    Case("mlp_two_classes", lambda: nn.Linear(6, 2), VECTORS, classes(5, 2)),
    Case("linear_on_tokens", lambda: over_tokens(nn.Linear(6, 6)), SEQUENCES),
    Case("linear_on_n_tokens", lambda: over_tokens(nn.Linear(6, 6)), normal(5, 5, 6)),
    Case(
        "linear_on_4d",
        lambda: nn.Sequential(nn.Linear(6, 3), m.Apply(lambda x: x.mean((1, 2)))),
        normal(5, 2, 3, 6),
    ),
    Case("linear_folded", lambda: m.Lambda(folded, body=nn.Linear(6, 6), out=nn.Linear(6, 3)), SEQUENCES),
    Case("linear_time_major", lambda: m.TimeMajor(6, 3), SEQUENCES),
    Case("linear_time_major_n_steps", lambda: m.TimeMajor(6, 3), normal(5, 5, 6)),
    Case("siamese_concatenated", lambda: m.Lambda(siamese, body=mlp()), lambda: (VECTORS(), VECTORS())),
    Case("sorted_rows", lambda: m.Lambda(sorted_rows, body=nn.Linear(6, 8), out=nn.Linear(8, 3)), VECTORS),
    Case(
        "routed_experts",
        lambda: m.Lambda(routed, left=nn.Linear(6, 8), right=nn.Linear(6, 8), out=nn.Linear(8, 3)),
        VECTORS,
    ),
    Case("bilinear", lambda: m.Lambda(lambda s, x: s.f(x, x), f=nn.Bilinear(6, 6, 3)), VECTORS),
    Case("prelu", lambda: nn.Sequential(nn.Linear(6, 8), nn.PReLU(8), nn.Linear(8, 3)), VECTORS),
    Case(
        "tuple_input",
        lambda: m.Lambda(lambda s, a, b: s.f(a) * torch.tanh(s.g(b)), f=nn.Linear(6, 3), g=nn.Linear(4, 3)),
        lambda: (VECTORS(), normal(5, 4)()),
    ),
    Case(
        "dict_input",
        lambda: m.Lambda(lambda s, left, right: s.f(left) * s.f(right), f=nn.Linear(6, 3)),
        lambda: {"right": VECTORS(), "left": VECTORS()},
    ),
    Case(
        "dict_input_with_a_number",
        lambda: m.Lambda(lambda s, x, factor: factor * s.f(x), f=nn.Linear(6, 3)),
        lambda: {"x": VECTORS(), "factor": 0.5},
    ),
]
