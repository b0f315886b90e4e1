"""Which sub-batches of a batch are perturbed, and how the others are evaluated together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from lightning_fisher.arguments import require_integer


class Part(NamedTuple):
    """Consecutive samples that are evaluated in one pass.

    Attributes:
        size: Number of samples.
        perturbed: Whether the part is a sub-batch ``B_i`` that is evaluated at ``w − α g_i`` as well.
    """

    size: int
    perturbed: bool


def part_sizes(count: int, parts: int) -> list[int]:
    """``parts`` sizes that differ by one at the most and add up to ``count``, the larger first."""
    small, larger = divmod(count, parts)
    return [small + 1] * larger + [small] * (parts - larger)


def check_perturbed(perturbed: int | None, num_sub_batches: int) -> None:
    """Refuse a number of perturbed sub-batches that doesn't fit M.

    Raises:
        ValueError: With the argument's name, what is allowed and the value received.
    """
    if perturbed is None:
        return
    words = f"None (all) or an integer from 1 to the {num_sub_batches} sub-batches"
    require_integer("perturbed", perturbed, 1, most=num_sub_batches, words=words)


def draw_perturbed(num_sub_batches: int, perturbed: int | None, generator: torch.Generator | None = None) -> list[bool]:
    """Draw which k = ``perturbed`` of M sub-batches are perturbed, every choice equally likely; ``None``: all."""
    if perturbed is None or perturbed >= num_sub_batches:
        return [True] * num_sub_batches
    chosen = set(torch.randperm(num_sub_batches, generator=generator)[:perturbed].tolist())
    return [i in chosen for i in range(num_sub_batches)]


def merge_unperturbed(sizes: Sequence[int], perturbed: Sequence[bool]) -> list[Part]:
    """The parts of a batch: each perturbed sub-batch by itself, neighbors that aren't in one."""
    parts: list[Part] = []
    for size, moved in zip(sizes, perturbed, strict=True):
        if parts and not moved and not parts[-1].perturbed:
            parts[-1] = Part(parts[-1].size + size, False)
        else:
            parts.append(Part(size, moved))
    return parts
