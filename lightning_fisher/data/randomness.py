"""Independent random streams: each a pure function of a seed and of what it is for."""

from __future__ import annotations

import hashlib

import torch


def stream(seed: int, purpose: str, *position: int) -> torch.Generator:
    """Make the CPU generator of one random choice.

    The generator depends on the arguments alone, never on the global random state, so that a resumed run draws what
    the uninterrupted one would have drawn, and one choice (say, of the validation images) does not move another.

    Args:
        seed: any integer; 0 is a seed like any other.
        purpose: what is drawn, for example `"validation"`.
        *position: where in the run it is drawn, for example the step and the rank.

    Returns:
        A freshly seeded generator on the CPU.
    """
    # Of a seed, torch's CPU generator takes 32 bits: the arguments have to be mixed before.
    digest = hashlib.blake2b(repr((seed, purpose, position)).encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))
