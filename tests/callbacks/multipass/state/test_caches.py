"""A stand-in for a function with a cache: what is in the cache is used, what isn't doesn't get there."""

from __future__ import annotations

import functools

import pytest

from lightning_fisher.callbacks.multipass.state.caches import CachedFunction

CALLS = [
    ((3,), {}),
    (("x",), {}),
    ((1, 2), {}),
    ((1.5,), {}),
    ((True,), {}),
    ((None,), {}),
    ((), {"a": 1}),
    ((2,), {"a": 1, "b": 2}),
]


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("size", [None, 128, 0])
def test_known_and_unknown_arguments(size, typed):
    made = []

    @functools.lru_cache(size, typed)
    def function(*args, **kwargs):
        made.append(args)
        return len(made)

    known = [function(*args, **kwargs) for args, kwargs in CALLS]
    before, count = function.cache_info(), len(made)
    stand_in = CachedFunction(function)
    again = [stand_in(*args, **kwargs) for args, kwargs in CALLS]
    if size == 0:
        assert len(made) == count + len(CALLS)  # it remembers nothing
        return
    assert (again, len(made)) == (known, count)
    first = stand_in("new", b=3)
    assert stand_in("new", b=3) == first == count + 1  # within a pass
    stand_in.begin()
    assert stand_in("new", b=3) == count + 2  # in the next
    after = function.cache_info()
    assert (after.currsize, after.misses) == (before.currsize, before.misses)
    assert function("new", b=3) == count + 3
    with pytest.raises(TypeError, match="unhashable"):
        stand_in([])


def test_a_method():
    class Owner:
        @functools.lru_cache  # noqa: B019
        def method(self, x):
            return self, x

    Owner.method = CachedFunction(Owner.method)
    owner = Owner()
    assert owner.method(1) == (owner, 1)
    assert Owner.method(owner, 2) == (owner, 2)
    assert Owner.method.cache_info().currsize == 0
