"""Batch normalization by the statistics of small parts of the batch."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_fisher.arguments import require_choice, require_integer

UPDATES = ("sequential", "averaged")
CONVERTED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
Module = TypeVar("Module", bound=nn.Module)


class GhostBatchNorm(_BatchNorm):
    r"""Ghost batch normalization (Hoffer, Hubara & Soudry 2017, Algorithm 1): batch-norm of parts of the batch.

    In training mode the batch of N samples is split into ``⌈N / size⌉`` consecutive parts whose sizes differ by one
    at the most, and every part is normalized by its own mean and variance. A large batch then has the noise of small
    ones. In evaluation mode, with the running statistics, it is batch-norm; ``state_dict`` is that of
    `torch.nn.BatchNorm2d`.

    The running statistics are updated by every part in turn, ``s ← (1 − m) s + m s_part``, as in the paper and the
    authors' code (``"sequential"``): with the same momentum m they follow the parameters faster than batch-norm's, by
    a factor of the number of parts. ``"averaged"`` divides m by the number of parts, as Composer does, and follows
    about as fast. ``num_batches_tracked`` counts parts. With ``momentum=None`` the statistics are the mean over all
    parts.

    Samples interact within a part only; each part needs more than one value a channel. Synchronized batch-norm
    (`torch.nn.SyncBatchNorm.convert_sync_batchnorm`, Lightning's ``sync_batchnorm=True``) would replace these layers as
    it does every batch-norm: leave it off. With several processes each normalizes the parts of its own batch.
    `torch.compile` unrolls the parts: with many of them it takes minutes.

    Args:
        num_features: C, of inputs ``[N, C]`` or ``[N, C, d1, …]``.
        size: Samples a part, at most.
        eps: As `torch.nn.BatchNorm2d`.
        momentum: As `torch.nn.BatchNorm2d`.
        affine: As `torch.nn.BatchNorm2d`.
        track_running_stats: As `torch.nn.BatchNorm2d`; ``False``: in evaluation mode too, by parts.
        update: ``"sequential"`` or ``"averaged"``.
        device: As `torch.nn.BatchNorm2d`.
        dtype: As `torch.nn.BatchNorm2d`.

    Raises:
        ValueError: If an option or the input's shape doesn't fit.

    Example:
        >>> import torch
        >>> from lightning_fisher.layers import GhostBatchNorm
        >>> layer, images = GhostBatchNorm(3, size=4), torch.randn(8, 3, 5, 5)
        >>> bool(torch.allclose(layer(images)[4:], torch.nn.BatchNorm2d(3)(images[4:])))
        True
    """

    def __init__(
        self,
        num_features: int,
        size: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        update: str = "sequential",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        require_integer("size", size, least=1)
        require_choice("update", update, UPDATES)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.size, self.update = size, update

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"Expected an input of shape [N, C, …], but got {tuple(input.shape)}.")

    def forward(self, input: Tensor) -> Tensor:
        """Normalize ``[N, C, …]``."""
        self._check_input_dim(input)
        if not self.training and self.running_mean is not None:
            return super().forward(input)
        parts = input.tensor_split(max(-(-len(input) // self.size), 1))
        return torch.cat([self._normalize(part, len(parts)) for part in parts])

    def _normalize(self, part: Tensor, parts: int) -> Tensor:
        tracked = self.training and self.track_running_stats
        factor = self.momentum or 0.0
        if tracked and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                factor = 1.0 / float(self.num_batches_tracked)
            elif self.update == "averaged":
                factor = self.momentum / parts
        mean, variance = (self.running_mean, self.running_var) if tracked else (None, None)
        return F.batch_norm(part, mean, variance, self.weight, self.bias, True, factor, self.eps)

    def extra_repr(self) -> str:
        """What is printed of the layer."""
        return f"{super().extra_repr()}, size={self.size}, update={self.update!r}"


def convert_ghost_batch_norm(module: Module, size: int, update: str = "sequential") -> Module | GhostBatchNorm:
    """Replace every `torch.nn.BatchNorm1d`, ``2d`` and ``3d`` in a module by a `GhostBatchNorm`, in place.

    The new layers hold the same parameter and buffer tensors (an optimizer that was built before goes on), mode, hooks
    excepted.

    Args:
        module: Any module; a single batch-norm layer is returned as a new layer.
        size: Samples a part, at most; see `GhostBatchNorm`.
        update: See `GhostBatchNorm`.

    Returns:
        The module.

    Raises:
        ValueError: If a batch-norm layer is of another class (synchronized, lazy, with an activation in it), which
            can't be replaced without changing what it does, or an option doesn't fit.

    Example:
        >>> import torch
        >>> from lightning_fisher.layers import convert_ghost_batch_norm
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
        >>> type(convert_ghost_batch_norm(net, size=16)[1]).__name__
        'GhostBatchNorm'
    """
    require_integer("size", size, least=1)
    require_choice("update", update, UPDATES)
    for name, submodule in module.named_modules():
        known = type(submodule) in CONVERTED or isinstance(submodule, GhostBatchNorm)
        if isinstance(submodule, _BatchNorm) and not known:
            raise ValueError(
                "Expected argument `module` to hold batch-norm layers of torch.nn.BatchNorm1d, 2d or 3d, but got "
                f"{type(submodule).__name__} ({name or 'itself'!r})."
            )
    if type(module) in CONVERTED:
        return _converted(module, size, update)
    done: dict[int, GhostBatchNorm] = {}  # a layer that is held at two places stays one
    for owner in list(module.modules()):
        for name, child in list(owner.named_children()):
            if type(child) in CONVERTED:
                done[id(child)] = done.get(id(child)) or _converted(child, size, update)
                setattr(owner, name, done[id(child)])
    return module


def _converted(layer: nn.Module, size: int, update: str) -> GhostBatchNorm:
    assert isinstance(layer, _BatchNorm)
    new = GhostBatchNorm(
        layer.num_features, size, layer.eps, layer.momentum, False, layer.track_running_stats, update, device="meta"
    )
    new.affine, new.training = layer.affine, layer.training
    for tensors in ("_parameters", "_buffers"):
        getattr(new, tensors).update(getattr(layer, tensors))
    return new
