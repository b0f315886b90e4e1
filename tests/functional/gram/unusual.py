"""Modules that are hard to look into, by kind: each a builder of ``(module, inputs, targets, loss_fn)`` in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.reference.modules import Lambda

N = 8


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def labels():
    return torch.randint(3, (N,))


def net(forward, inputs, targets=None, loss_fn=None, parameters=None, **submodules):
    """A `Lambda` in float64 with its samples."""
    module = Lambda(forward, parameters, **submodules).double().eval()
    return module, inputs, labels() if targets is None else targets, loss_fn


def squared(z, y):
    return ((z - y) ** 2).flatten(1).mean(1)


# Rows chosen by data


def routed(k):
    """Experts that see the tokens routed to them (top-k)."""

    def forward(self, x):
        z = x.reshape(-1, 6)
        weights, chosen = self.gate(z).softmax(-1).topk(k, -1)
        out = torch.zeros_like(z)
        for i, expert in enumerate(self.experts):
            rows, slots = (chosen == i).nonzero(as_tuple=True)
            out = out.index_add(0, rows, weights[rows, slots, None] * torch.tanh(expert(z[rows])))
        return self.out(out.view(x.shape).mean(1))

    experts = nn.ModuleList([nn.Linear(6, 6) for _ in range(4)])
    return lambda: net(forward, randn(N, 4, 6), gate=nn.Linear(6, 4), experts=experts, out=nn.Linear(6, 3))


def sorted_after_the_first_two():
    """The order of the first two samples, which a probe looks at, is the usual one."""

    def forward(self, x):
        order = torch.cat([torch.arange(len(x))[:2], x[2:, 0].argsort() + 2])
        return self.out(torch.tanh(self.body(x[order]))[order.argsort()])

    return net(forward, randn(N, 6), body=nn.Linear(6, 6), out=nn.Linear(6, 3))


def ragged():
    def forward(self, x, lengths):
        tokens = torch.cat([row[:length] for row, length in zip(x, lengths.tolist(), strict=True)])
        pieces = torch.tanh(self.body(tokens)).split(lengths.tolist())
        return self.out(torch.stack([piece.mean(0) for piece in pieces]))

    lengths = torch.tensor([3, 3, 3, 2, 4, 3, 3, 3])  # three a sample on average
    return net(forward, (randn(N, 5, 6), lengths), body=nn.Linear(6, 6), out=nn.Linear(6, 3))


def early_exit():
    def forward(self, x):
        hidden = torch.tanh(self.body(x))
        out, deeper = self.out(hidden).clone(), hidden.sum(1) > 0
        if deeper.any():
            out[deeper] = self.last(torch.tanh(self.second(hidden[deeper])))
        return out

    layers = {"body": nn.Linear(6, 6), "second": nn.Linear(6, 6), "out": nn.Linear(6, 3), "last": nn.Linear(6, 3)}
    return net(forward, randn(N, 6), **layers)


def last_token():
    def forward(self, x, positions):
        return self.out(torch.tanh(self.body(x))[torch.arange(len(x)), positions])

    return net(forward, (randn(N, 5, 6), torch.randint(5, (N,))), body=nn.Linear(6, 6), out=nn.Linear(6, 3))


CHOSEN_BY_DATA = {
    "top-1 experts": routed(1),
    "top-2 experts": routed(2),
    "sorted after the first two": sorted_after_the_first_two,
    "ragged": ragged,
    "early exit": early_exit,
    "last token": last_token,
}


# Autograd and function transforms inside the forward pass


def forces():
    def forward(self, x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.energy(torch.tanh(self.body(x))).sum(), x, create_graph=True)[0]

    return net(forward, randn(N, 6), randn(N, 6), squared, body=nn.Linear(6, 8), energy=nn.Linear(8, 1))


def inner_step():
    """A step of gradient descent inside the forward pass, as in meta-learning."""

    def forward(self, x):
        outputs = []
        for row in x:
            (step,) = torch.autograd.grad((self.body(row) ** 2).mean(), self.body.weight, create_graph=True)
            outputs.append(F.linear(row, self.body.weight - 0.1 * step, self.body.bias))
        return torch.stack(outputs)

    return net(forward, randn(N, 6), body=nn.Linear(6, 3))


def transform(name):
    def forward(self, x):
        def one(v):
            return torch.tanh(self.body(v))

        if name == "vmap":
            hidden = torch.vmap(one)(x)
        elif name == "jacrev":
            hidden = torch.vmap(torch.func.jacrev(one))(x).sum(2)
        elif name == "grad":
            hidden = torch.vmap(torch.func.grad(lambda v: one(v).sum()))(x)
        else:
            hidden = torch.func.jvp(one, (x,), (torch.ones_like(x),))[1]
        return self.out(hidden)

    return lambda: net(forward, randn(N, 6), body=nn.Linear(6, 6), out=nn.Linear(6, 3))


def functional_call():
    def forward(self, x):
        doubled = {name: 2 * value for name, value in self.body.named_parameters()}
        return self.out(torch.tanh(torch.func.functional_call(self.body, doubled, (x,))))

    return net(forward, randn(N, 6), body=nn.Linear(6, 6), out=nn.Linear(6, 3))


TRANSFORMS = {
    "forces of an energy": forces,
    "a step inside": inner_step,
    "functional_call": functional_call,
    **{name: transform(name) for name in ("vmap", "jacrev", "grad", "jvp")},
}


# Weights in shapes that a layer's rule doesn't assume


def vector_weight():
    def forward(self, x):
        return self.out(torch.tanh(F.linear(x, self.weight)))

    return net(forward, randn(N, 4, 6), parameters={"weight": torch.randn(6)}, out=nn.Linear(4, 3))


def broadcast_bias():
    def forward(self, x):
        return self.out(torch.tanh(F.linear(x, self.weight, self.bias)))

    parameters = {"weight": torch.randn(5, 6), "bias": torch.randn(1)}
    return net(forward, randn(N, 6), parameters=parameters, out=nn.Linear(5, 3))


def one_weight_with_and_without_groups():
    def forward(self, x):
        once = F.conv2d(x, self.weight, padding=1)
        return self.out(torch.tanh(F.conv2d(once, self.weight, padding=1, groups=2)).mean((2, 3)))

    return net(forward, randn(N, 2, 5, 5), parameters={"weight": torch.randn(4, 2, 3, 3)}, out=nn.Linear(4, 3))


def one_vector_as_bias_scale_and_shift():
    def forward(self, x):
        return self.out(F.layer_norm(F.linear(x, self.weight, self.vector), (6,), self.vector, self.vector))

    parameters = {"weight": torch.randn(6, 6), "vector": torch.randn(6)}
    return net(forward, randn(N, 6), parameters=parameters, out=nn.Linear(6, 3))


def convolution_and_linear():
    def forward(self, x):
        linear = F.linear(x.transpose(1, 2), self.weight.squeeze(-1)).transpose(1, 2)
        return self.out((linear + F.conv1d(x, self.weight)).tanh().mean(2))

    return net(forward, randn(N, 4, 5), parameters={"weight": torch.randn(4, 4, 1)}, out=nn.Linear(4, 3))


SHAPES = {
    "a vector as the weight of a linear layer": vector_weight,
    "a bias that is broadcast": broadcast_bias,
    "a convolution's weight with and without groups": one_weight_with_and_without_groups,
    "one vector as bias, scale and shift": one_vector_as_bias_scale_and_shift,
    "a weight of a convolution and of a linear layer": convolution_and_linear,
}


# Hooks


def hooked(add):
    """A network of two layers after ``add`` gave it a hook."""

    def build():
        module = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).double().eval()
        add(module)
        return module, randn(N, 6), labels(), None

    return build


def hook_on_an_activation(parameter):
    """``parameter``: the activation is made by a function without a rule."""

    def forward(self, x):
        hidden = x * self.scale if parameter else self.body(x)
        hidden.register_hook(lambda gradient: 2 * gradient)
        return self.out(torch.tanh(hidden))

    return lambda: net(
        forward, randn(N, 6), parameters={"scale": torch.randn(6)}, body=nn.Linear(6, 6), out=nn.Linear(6, 3)
    )


MASK = (torch.arange(6) % 2).double().unsqueeze(1)
HOOKS = {
    "a mask on a weight": hooked(lambda m: m[0].weight.register_hook(lambda g: g * MASK)),
    "a clamp on a bias": hooked(lambda m: m[2].bias.register_hook(lambda g: g.clamp(-0.1, 0.1))),
    "a gradient that is clipped": hooked(lambda m: m[0].weight.register_hook(lambda g: g / g.norm().clamp_min(0.05))),
    "full backward hook": hooked(lambda m: m[1].register_full_backward_hook(lambda m, gi, go: (0.5 * gi[0],))),
    "full backward pre-hook": hooked(lambda m: m[0].register_full_backward_pre_hook(lambda m, go: (3 * go[0],))),
    "on an activation": hook_on_an_activation(False),
    "on an activation without a rule": hook_on_an_activation(True),
}


# Code that no function mode sees


@torch.jit.script
def gate(x, weight):
    return torch.sigmoid(x @ weight.t())


@torch.jit.script
def shifted(x, bias):
    return torch.tanh(x) + bias


def scripted_function_and_layer():
    def forward(self, x):
        return self.out(gate(x, self.body.weight) * torch.tanh(self.body(x)))

    return net(forward, randn(N, 6), body=nn.Linear(6, 6, bias=False), out=nn.Linear(6, 3))


def scripted_function_and_bias():
    def forward(self, x):
        return self.out(shifted(self.body(x), self.body.bias))

    return net(forward, randn(N, 6), body=nn.Linear(6, 6), out=nn.Linear(6, 3))


def scripted_submodule():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.Tanh()))
    module = nn.Sequential(nn.Linear(6, 6), scripted, nn.Linear(6, 3)).double().eval()
    return module, randn(N, 6), labels(), None


def checkpointed(use_reentrant):
    def forward(self, x):
        inner = lambda v: torch.tanh(self.body(v))  # noqa: E731
        return self.out(checkpoint(inner, self.first(x), use_reentrant=use_reentrant))

    layers = {"first": nn.Linear(6, 6), "body": nn.Linear(6, 6), "out": nn.Linear(6, 3)}
    return lambda: net(forward, randn(N, 6), **layers)


UNSEEN = {
    "a scripted function of a layer's weight": scripted_function_and_layer,
    "a scripted function of a layer's bias": scripted_function_and_bias,
    "a scripted submodule": scripted_submodule,
    "a checkpoint": checkpointed(False),
    "a reentrant checkpoint": checkpointed(True),
}


# Layers' inputs modified in place, attention trained in part


def attention_with_residual_in_place(frozen):
    def forward(self, x, memory):
        x = x.clone()
        x += self.attention(x, memory, memory)[0]
        return self.out(x.mean(1))

    def build():
        attention = nn.MultiheadAttention(6, 2, batch_first=True)
        for name in frozen:
            attention.get_parameter(name).requires_grad_(False)
        return net(forward, (randn(N, 4, 6), randn(N, 5, 6)), attention=attention, out=nn.Linear(6, 3))

    return build


def input_scaled_in_place():
    def forward(self, x):
        x = x.clone()
        hidden = self.body(x)
        x *= 2
        return self.out(torch.tanh(hidden) + x)

    module, *rest = net(forward, randn(N, 6), body=nn.Linear(6, 6), out=nn.Linear(6, 3))
    module.body.weight.requires_grad_(False)  # the bias needs no input
    return module, *rest


IN_PLACE = {
    "biases of attention": attention_with_residual_in_place(["in_proj_weight"]),
    "biases of attention only": attention_with_residual_in_place(["in_proj_weight", "out_proj.weight"]),
    "input of a layer whose bias is trained": input_scaled_in_place,
}


# Kernels that depend on who looks


def encoder_with_padding(trained, below):
    """Torch's fused encoder gives zeros at padded positions, the plain one doesn't."""
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).requires_grad_(trained)
    padded = torch.zeros(N, 5, dtype=torch.bool)
    padded[::2, 3:] = True

    def forward(self, x, padded):
        return self.out(self.encoder(self.below(x) if below else x, src_key_padding_mask=padded).mean(1))

    layers = {"below": nn.Linear(6, 6) if below else nn.Identity(), "encoder": encoder, "out": nn.Linear(6, 3)}
    return lambda: net(forward, (randn(N, 5, 6), padded), **layers)


KERNELS = {
    "frozen encoder": encoder_with_padding(False, False),
    "frozen encoder over a trained layer": encoder_with_padding(False, True),
    "trained encoder": encoder_with_padding(True, False),
}


KINDS = {
    "rows chosen by data": CHOSEN_BY_DATA,
    "transforms inside": TRANSFORMS,
    "shapes": SHAPES,
    "hooks": HOOKS,
    "unseen code": UNSEEN,
    "in place": IN_PLACE,
    "kernels": KERNELS,
}


# Samples that interact where a look at the first ones doesn't show it


class _Coupled(torch.autograd.Function):
    """The backward pass couples the last two samples of a batch."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        if len(gradient) > 2:
            gradient[-2:] = gradient[-2:] + 0.1 * gradient[-2:].flip(0)
        return gradient


class _Normalized(torch.autograd.Function):
    """A backward pass that normalizes the gradient it gets."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient / gradient.norm(dim=1, keepdim=True)


def between(function):
    """Two layers with something between them."""

    def forward(self, x):
        return self.out(function(torch.tanh(self.body(x))))

    return lambda: net(forward, randn(N, 6), body=nn.Linear(6, 6), out=nn.Linear(6, 3))


def _last_two_of_the_batch(h):
    """Only the values are mixed, and only of the last two; no gradient is."""
    if len(h) < 3:
        return h
    return torch.cat([h[:-2], h[-2:] + 0.01 * h[-2:].flip(0).detach()])


def limited_experts():
    """An expert takes two samples at the most: the rest of a batch decides which."""

    def forward(self, x):
        weights, chosen = self.gate(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows = (chosen == i).nonzero().squeeze(1)[:2]
            out = out.index_add(0, rows, weights[rows, None] * torch.tanh(expert(x[rows])))
        return self.out(out)

    experts = nn.ModuleList([nn.Linear(6, 6) for _ in range(2)])
    return net(forward, randn(N, 6), gate=nn.Linear(6, 2), experts=experts, out=nn.Linear(6, 3))


INTERACTING = {
    "values of the last two": (between(_last_two_of_the_batch), "output for a sample depends"),
    "gradients of the last two": (between(_Coupled.apply), "gradient, though not its output"),
    "experts of limited capacity": (limited_experts, "output for a sample depends"),
    "normalized gradients": (between(_Normalized.apply), "linear in the gradient of the output"),
}
