"""Everything a pure function of a module must leave as it found it."""

from __future__ import annotations

import random

import numpy as np
import torch


def snapshot(module):
    """A flat dictionary of comparable values; equal before and after if nothing was touched."""
    state = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        state[f"{name}: identity"] = id(parameter), parameter.data_ptr(), parameter.requires_grad
        state[f"{name}: value"] = _frozen(parameter)
        state[f"{name}: grad"] = id(parameter.grad), _frozen(parameter.grad)
        state[f"{name}: hooks"] = len(parameter._backward_hooks or {})
    for name, buffer in module.named_buffers(remove_duplicate=False):
        state[f"{name}: buffer"] = id(buffer), _frozen(buffer)
    for name, submodule in module.named_modules():
        state[f"{name}: mode"] = submodule.training
        state[f"{name}: attributes"] = sorted(vars(submodule))
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            state[f"{name}: {kind}"] = len(getattr(submodule, kind))
    return {**state, **global_state()}


def global_state():
    """Random states, precision settings, grad and autocast mode of the process."""
    return {
        "torch random state": _frozen(torch.get_rng_state()),
        "numpy random state": repr(np.random.get_state()),
        "python random state": repr(random.getstate()),
        "cudnn tf32": torch.backends.cudnn.allow_tf32,
        "matmul tf32": torch.backends.cuda.matmul.allow_tf32,
        "matmul precision": torch.get_float32_matmul_precision(),
        "cudnn": (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark),
        "mkldnn": torch.backends.mkldnn.enabled,
        "attention": torch.backends.mha.get_fastpath_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "autocast cache": torch.is_autocast_cache_enabled(),
        "default dtype": torch.get_default_dtype(),
    }


def _frozen(tensor):
    """The bits of a tensor."""
    if tensor is None:
        return None
    tensor = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
    return str(tensor.dtype), tuple(tensor.shape), tensor.contiguous().view(-1).numpy().tobytes()


def changes(before, after):
    """Names of what differs."""
    return [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
