"""Paths on the command line."""

from __future__ import annotations

import pytest

from lightning_fisher.experiment.cli import with_home


@pytest.mark.parametrize(
    ("home", "given", "expected"),
    [
        ("/home/me", "data.path=~/a.npz", "data.path=/home/me/a.npz"),
        ("/home/me", "data.path=~/a.npz,~/b.npz", "data.path=/home/me/a.npz,/home/me/b.npz"),
        ("/home/me", "score.checkpoint=[~/a,~/b]", "score.checkpoint=[/home/me/a,/home/me/b]"),
        ("/home/me", "~model.optimizer.momentum", "~model.optimizer.momentum"),
        ("/home/me", "data.path=a~/b", "data.path=a~/b"),
        ("/home/me too", "data.path=~/a.npz", "data.path=~/a.npz"),
    ],
)
def test_the_home_folder(home: str, given: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", home)
    assert with_home([given]) == [expected]
