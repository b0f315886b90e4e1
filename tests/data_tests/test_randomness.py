from __future__ import annotations

import torch

from lightning_fisher.data.randomness import stream


def draw(*args) -> list[float]:
    return torch.rand(4, generator=stream(*args)).tolist()


def test_a_stream_is_a_function_of_its_arguments():
    state = torch.get_rng_state()
    assert draw(0, "order", 3, 1) == draw(0, "order", 3, 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_streams_of_other_arguments_differ():
    arguments = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, "a", 1, 0), (0, "a", 0, 1), (2**32, "a")]
    assert len({tuple(draw(*args)) for args in arguments}) == len(arguments)
