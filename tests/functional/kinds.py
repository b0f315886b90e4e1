"""One more example of each kind of module or loss that is easily measured wrong: builders of what a call takes.

Each returns ``(module, inputs, targets, loss_fn)`` with N samples, in float64 unless the example is about dtypes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from tests.reference.modules import Lambda

N = 8


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def labels(classes=3):
    return torch.arange(N) % classes


def net(forward, inputs, targets=None, loss_fn=None, parameters=None, **submodules):
    module = Lambda(forward, parameters, **submodules).double().eval()
    return module, inputs, labels() if targets is None else targets, loss_fn


def linear(**others):
    return {"body": nn.Linear(6, 6), "out": nn.Linear(6, 3), **others}


# What is changed in place


def popped():
    def forward(self, batch):
        x = batch.pop("x")
        x.sub_(batch["shift"])
        batch.clear()
        return self.out(torch.tanh(self.body(x)))

    return net(forward, ({"x": randn(N, 6), "shift": randn(N, 6)},), **linear())


def through_numpy():
    def forward(self, x):
        x.numpy()[...] *= 1.7
        return self.out(torch.tanh(self.body(x)))

    return net(forward, randn(N, 6), **linear())


def outputs_in_place():
    def loss(outputs, y):
        return F.cross_entropy(outputs.mul_(2.0), y.clamp_(min=1), reduction="none")

    return net(lambda self, x: self.out(x), randn(N, 6), loss_fn=loss, out=nn.Linear(6, 3))


# Two kernels


def frozen_encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True, activation="gelu")
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).requires_grad_(False)
    padding = torch.zeros(N, 4, dtype=torch.bool)
    padding[0, 2:] = padding[3, 1:] = True

    def forward(self, x, mask):
        return self.out(self.encoder(x, src_key_padding_mask=mask).mean(1))

    return net(forward, (randn(N, 4, 8), padding), encoder=encoder, out=nn.Linear(8, 3))


def two_ways():
    """Computes something else where a function mode is on."""

    def forward(self, x):
        h = self.body(x)
        return self.out(torch.tanh(h) if torch.overrides.has_torch_function((h,)) else torch.sigmoid(h))

    return net(forward, randn(N, 6), **linear())


# Rows chosen by data


def packed():
    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.out(self.recurrent(packed)[1][-1])

    lengths = torch.tensor([6, 2, 4, 1, 5, 3, 6, 2])
    return net(forward, (randn(N, 6, 5), lengths), recurrent=nn.GRU(5, 6, batch_first=True), out=nn.Linear(6, 3))


def jagged():
    def forward(self, x):
        rows = torch.nested.as_nested_tensor([v[: 1 + 2 * int(v[0, 0] > 0)] for v in x], layout=torch.jagged)
        return self.out(torch.stack([v.sum(0) for v in torch.tanh(self.body(rows)).unbind()]))

    return net(forward, randn(N, 4, 6), **linear())


# Losses with parameters


def adaptive_softmax():
    head = nn.AdaptiveLogSoftmaxWithLoss(6, 9, [3, 6])
    made = net(lambda self, x: torch.tanh(self.body(x)), randn(N, 6), labels(9), body=nn.Linear(6, 6), head=head)
    return (*made[:3], lambda outputs, y: made[0].head(outputs, y).loss)


def scaled_by_weights():
    made = net(lambda self, x: self.out(x), randn(N, 6), out=nn.Linear(6, 3))
    weight = made[0].out.weight

    def loss(outputs, y):
        losses = F.cross_entropy(outputs, y, reduction="none") + 0.1 * weight.norm() * outputs.square().mean(1)
        return losses + 0.05 * (weight @ weight.T).square().sum()

    return (*made[:3], loss)


# Dtypes


def nanoseconds():
    start = 1_700_000_000_000_000_000

    def forward(self, x, time):
        return self.out(torch.tanh(self.body(x) + (time - start).to(x.dtype).unsqueeze(1)))

    return net(forward, (randn(N, 6), start + torch.arange(N)), **linear())


def quantized():
    """Frozen integers and eight-bit floats under a trained adapter, all in float32."""
    module = net(lambda self, x: None, None, down=nn.Linear(6, 2), up=nn.Linear(2, 6), out=nn.Linear(6, 3))[0].float()
    module.register_buffer("integers", torch.randint(-127, 128, (6, 6), dtype=torch.int8))
    module.register_buffer("small", torch.randn(6, 6).to(torch.float8_e4m3fn))

    def forward(self, x):
        frozen = F.linear(x, 0.02 * self.integers.to(x.dtype) + self.small.to(x.dtype))
        return self.out(torch.tanh(frozen + self.up(self.down(x))))

    module.function = forward
    return module, torch.randn(N, 6), labels(), None


# Shapes and structures


def two_vectors():
    def loss(outputs, y):
        return F.mse_loss(outputs[0], y[0]) + F.l1_loss(outputs[1], y[1])

    def forward(self, x):
        return self.one(x).squeeze(-1), torch.tanh(self.body(x)).sum(-1)

    return net(forward, randn(N, 6), (randn(N), randn(N)), loss, one=nn.Linear(6, 1), body=nn.Linear(6, 3))


def squeezed_twice():
    def forward(self, x):
        return self.out(torch.tanh(self.body(x.squeeze(0))).mean(-2)).squeeze()

    return net(forward, randn(N, 4, 6), loss_fn=lambda o, y: F.cross_entropy(o.reshape(len(y), -1), y), **linear())


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    caches: Any = None
    name: str = "output"


def dataclass_with_caches():
    def forward(self, x):
        z = self.out(x)
        return Output(z, [(z[:, :1], z[:, 1:]), {"states": [z.detach()]}])

    return net(forward, randn(N, 6), loss_fn=lambda o, y: F.cross_entropy(o.logits, y), out=nn.Linear(6, 3))


# Transforms inside


def dual_numbers():
    def forward(self, x):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones_like(x))
            value, tangent = forward_ad.unpack_dual(torch.tanh(self.norm(self.body(dual))))
        return self.out(value + tangent)

    return net(forward, randn(N, 6), **linear(norm=nn.BatchNorm1d(6)))


def unrolled():
    def forward(self, x):
        y = torch.zeros(len(x), 6, dtype=x.dtype, requires_grad=True)
        for _ in range(2):
            energy = (torch.tanh(self.body(y)) - x).square().sum() + 0.1 * y.square().sum()
            y = y - 0.2 * torch.autograd.grad(energy, y, create_graph=True)[0]
        return self.out(y)

    return net(forward, randn(N, 6), **linear())


def jacobians():
    def forward(self, x):
        return self.out(torch.vmap(torch.func.jacrev(lambda v: torch.tanh(self.body(v))))(x).flatten(1))

    return net(forward, randn(N, 4), body=nn.Linear(4, 3), out=nn.Linear(12, 3))


# One weight, several shapes


def factors():
    def forward(self, x):
        h = torch.addmm(self.bias, x[:, 0], self.weight, beta=0.3, alpha=1.7)
        more = torch.baddbmm(self.bias.expand(len(x), 4, 6), x, self.weight.expand(len(x), 6, 6), beta=0.5)
        return self.out(torch.tanh(h) + torch.tanh(more).mean(1))

    return net(forward, randn(N, 4, 6), parameters={"bias": randn(6), "weight": randn(6, 6)}, out=nn.Linear(6, 3))


def bilinear_and_slice():
    def forward(self, x):
        return self.out(F.bilinear(x[:, 0], x[:, 1], self.weight) + F.linear(x[:, 2], self.weight[0]))

    return net(forward, randn(N, 4, 6), parameters={"weight": randn(6, 6, 6)}, out=nn.Linear(6, 3))


# Hooks


def several_hooks():
    made = net(lambda self, x: self.out(torch.tanh(self.body(x))), randn(N, 6), **linear())
    for parameter in made[0].parameters():
        parameter.register_hook(lambda gradient: 2 * gradient)
    made[0].body.weight.register_hook(lambda gradient: 0.5 * gradient.T.contiguous().T)
    made[0].out.weight.register_post_accumulate_grad_hook(lambda parameter: parameter.data.zero_())
    return made


# Unseen code


@torch.library.custom_op("lightning_fisher_tests::product", mutates_args=())
def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x @ weight.t()


product.register_autograd(
    lambda ctx, gradient: (gradient @ ctx.saved_tensors[1], gradient.t() @ ctx.saved_tensors[0]),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def custom_operator():
    def forward(self, x):
        return self.out(torch.tanh(product(x, self.body.weight)) + self.body(x))

    return net(forward, randn(N, 6), **linear())


# In place between layers


def cache_by_rows():
    def forward(self, x):
        keys, values = torch.zeros_like(x), torch.zeros_like(x)
        for i in range(x.shape[1]):
            keys[:, i], values[:, i] = self.keys(x[:, i]), self.body(x[:, i])
        attention = torch.softmax(self.queries(x) @ keys.mT, -1)
        return self.out((x.clone().mul_(0.5).add_(attention @ values)).mean(1))

    made = net(forward, randn(N, 4, 6), **linear(keys=nn.Linear(6, 6), queries=nn.Linear(6, 6)))
    made[0].queries.weight.requires_grad_(False)
    return made


KINDS = {
    "inputs popped from a dict and changed": popped,
    "inputs changed through numpy": through_numpy,
    "a loss that changes outputs and targets": outputs_in_place,
    "a frozen encoder, normalized first": frozen_encoder,
    "something else under a function mode": two_ways,
    "packed sequences": packed,
    "nested tensors inside": jagged,
    "an adaptive softmax in the loss": adaptive_softmax,
    "losses scaled by a weight": scaled_by_weights,
    "nanoseconds in int64": nanoseconds,
    "frozen int8 and float8": quantized,
    "two outputs of shape [N]": two_vectors,
    "squeezed before and after": squeezed_twice,
    "a dataclass with caches": dataclass_with_caches,
    "dual numbers": dual_numbers,
    "unrolled optimization": unrolled,
    "Jacobians of samples": jacobians,
    "addmm and baddbmm with factors": factors,
    "a bilinear weight and a slice of it": bilinear_and_slice,
    "several hooks": several_hooks,
    "a custom operator beside the layer": custom_operator,
    "a cache written row by row": cache_by_rows,
}
