"""Small modules for the table of cases: each does one thing that is easy to get wrong."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint


class Apply(nn.Module):
    """A fixed function of its inputs, as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


class Lambda(nn.Module):
    """``function(self, *inputs)`` over named submodules and parameters."""

    def __init__(self, function, parameters=None, **submodules):
        super().__init__()
        self.function = function
        for name, submodule in submodules.items():
            self.add_module(name, submodule)
        for name, parameter in (parameters or {}).items():
            self.register_parameter(name, nn.Parameter(parameter))

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


class Residual(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.body(x)


class LastStep(nn.Module):
    """A recurrent layer over ``[N, L, E]``, its last output classified."""

    def __init__(self, recurrent, features, classes, batch_first=True):
        super().__init__()
        self.recurrent = recurrent
        self.head = nn.Linear(features, classes)
        self.batch_first = batch_first

    def forward(self, x):
        if not self.batch_first:
            return self.head(self.recurrent(x.transpose(0, 1))[0][-1])
        return self.head(self.recurrent(x)[0][:, -1])


class SelfAttention(nn.Module):
    """Multi-head self-attention over ``[N, L, E]``, mean over L, classified."""

    def __init__(self, features, classes, batch_first, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(features, 2, batch_first=batch_first, **options)
        self.head = nn.Linear(features, classes)
        self.batch_first = batch_first

    def forward(self, x):
        if not self.batch_first:
            x = x.transpose(0, 1)
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.head(x.mean(dim=1 if self.batch_first else 0))


class CrossAttention(nn.Module):
    """A sequence attends to another one of other length and other width."""

    def __init__(self, features, other_features, classes, batch_first):
        super().__init__()
        self.attention = nn.MultiheadAttention(
            features, 2, kdim=other_features, vdim=other_features, batch_first=batch_first
        )
        self.head = nn.Linear(features, classes)
        self.batch_first = batch_first

    def forward(self, query, memory):
        if not self.batch_first:
            query, memory = query.transpose(0, 1), memory.transpose(0, 1)
        x, _ = self.attention(query, memory, memory)
        return self.head(x.mean(dim=1 if self.batch_first else 0))


class LearnedQuery(nn.Module):
    """A trainable query expanded over the batch attends to the tokens: raw parameters and attention."""

    def __init__(self, features, classes):
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 2, features))
        self.attention = nn.MultiheadAttention(features, 2, batch_first=True)
        self.head = nn.Linear(2 * features, classes)

    def forward(self, x):
        return self.head(self.attention(self.query.expand(len(x), -1, -1), x, x)[0].flatten(1))


class PositionalTransformer(nn.Module):
    """Tokens plus positions: the position table is applied to ``arange(L)``, once for the whole batch."""

    def __init__(self, length, features, classes, layer=None):
        super().__init__()
        self.token = nn.Embedding(7, features)
        self.position = nn.Embedding(length, features)
        self.layer = layer or nn.Linear(features, features)
        self.head = nn.Linear(features, classes)

    def forward(self, tokens):
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        return self.head(torch.tanh(self.layer(x)).mean(dim=1))


class TimeMajor(nn.Module):
    """A linear layer over ``[L, N, E]``: the batch is the second dimension."""

    def __init__(self, features, classes):
        super().__init__()
        self.linear = nn.Linear(features, features)
        self.norm = nn.LayerNorm(features)
        self.head = nn.Linear(features, classes)

    def forward(self, x):
        h = self.norm(torch.tanh(self.linear(x.transpose(0, 1))))
        return self.head(h[-1] - 0.5 * h[0])


class TiedLanguageModel(nn.Module):
    """The table is embedding and classifier at once: as two modules, or through ``F.linear``."""

    def __init__(self, classes, features, functional):
        super().__init__()
        self.embedding = nn.Embedding(classes, features)
        self.functional = functional
        if not functional:
            self.head = nn.Linear(features, classes, bias=False)
            self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = torch.tanh(self.embedding(tokens)).mean(dim=1)
        return F.linear(x, self.embedding.weight) if self.functional else self.head(x)


class DoublingLinear(nn.Linear):
    """A subclass whose forward is not the forward of its base."""

    def forward(self, x):
        return F.linear(2 * x, self.weight.tanh(), self.bias)


class StandardizedConv(nn.Conv2d):
    """Weight standardization: a convolution with a function of its weight."""

    def forward(self, x):
        w = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return self._conv_forward(x, w / (w.std(dim=(1, 2, 3), keepdim=True) + 1e-3), self.bias)


class FunctionalUse(nn.Module):
    """A submodule that is never called: its weight is used through ``F.conv2d``."""

    def __init__(self, classes):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        x = torch.tanh(F.conv2d(x, self.conv.weight, self.conv.bias, stride=2))
        return self.head(x.mean(dim=(2, 3)))


class MatrixProduct(torch.autograd.Function):
    """``x w^T`` with a backward pass of its own."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad @ w, grad.T @ x


class Checkpointed(nn.Module):
    """The body is recomputed during the backward pass."""

    def __init__(self, body, head):
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x):
        return self.head(checkpoint(self.body, x, use_reentrant=False))


def with_output_hook(module, factor):
    """The module with a user's forward hook that rescales its output."""
    module.register_forward_hook(lambda _module, _inputs, output: factor * output)
    return module


def with_input_hook(module, factor):
    """The module with a user's forward pre-hook that rescales its input."""
    module.register_forward_pre_hook(lambda _module, inputs: (factor * inputs[0],))
    return module


def weight_norm(module):
    return parametrizations.weight_norm(module)


def spectral_norm(module):
    return parametrizations.spectral_norm(module)


def freeze(module, *names):
    """The module with the parameters of these names (all of them without names) frozen."""
    for name, parameter in module.named_parameters():
        if not names or name in names:
            parameter.requires_grad_(False)
    return module


def with_trained_statistics(module):
    """Running statistics and affine parameters away from their initial values, deterministically."""
    for submodule in module.modules():
        if getattr(submodule, "running_mean", None) is not None:
            submodule.running_mean.normal_(0.0, 0.5)
            submodule.running_var.uniform_(0.5, 2.0)
        if "Norm" in type(submodule).__name__:
            with torch.no_grad():
                for parameter in submodule.parameters(recurse=False):
                    parameter.add_(0.3 * torch.randn_like(parameter))
    return module
