"""Slicing a batch whose inputs are a tensor, a tuple or a dict, and calling a module on it."""

from __future__ import annotations

import copy


def to_double(value):
    """Floating-point tensors to float64, everything else as it is."""
    if isinstance(value, dict):
        return {key: to_double(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(to_double(item) for item in value)
    if hasattr(value, "is_floating_point") and value.is_floating_point():
        return value.double()
    return value


def take(value, index):
    """The samples ``index`` (a slice or a tensor of indices along dim 0) of every tensor in ``value``."""
    if isinstance(value, dict):
        return {key: take(item, index) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(take(item, index) for item in value)
    if hasattr(value, "dim"):
        return value[index].clone()
    return value


def call(module, inputs):
    """``module(x)``, ``module(*x)`` or ``module(**x)``."""
    if isinstance(inputs, dict):
        return module(**inputs)
    if isinstance(inputs, (tuple, list)):
        return module(*inputs)
    return module(inputs)


def double_copy(module):
    """A float64 copy of the module, submodules in the same mode; the original is never touched."""
    return copy.deepcopy(module).double()
