"""Per-channel normalization of uint8 images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, exactly, on the scale 0 to 1.

    Computed from the histogram of the 256 values, so that no rounding depends on the number of images.

    Args:
        images: uint8 `[N, C, H, W]`.

    Returns:
        The means and the (biased) standard deviations, C values each; for CIFAR-10, times 255, the well-known
        (125.3, 123.0, 113.9) and (63.0, 62.1, 66.7).
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(dim=1):
        share = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
        mean = (share * values).sum()
        means.append(mean.item())
        stds.append((share * (values - mean) ** 2).sum().sqrt().item())
    return means, stds


@dataclass(frozen=True)
class Normalization:
    """`x -> (x / 255 - mean) / std`, per channel, on the device of x.

    Args:
        mean: C means on the scale 0 to 1.
        std: C positive standard deviations on the scale 0 to 1.

    Raises:
        ValueError: if the two differ in length or a standard deviation is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise ValueError(
                "Expected arguments `mean` and `std` to be one number a channel, `std` positive, "
                f"but got {list(self.mean)} and {list(self.std)}."
            )

    def __call__(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normalize uint8 images `[B, C, H, W]` to `dtype`."""
        scale = torch.tensor([1 / (255 * s) for s in self.std], dtype=dtype)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)], dtype=dtype)
        scale, shift = (t.view(-1, 1, 1).to(images.device, non_blocking=True) for t in (scale, shift))
        return images.to(dtype) * scale + shift
