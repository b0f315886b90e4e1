"""What every figure has in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_fisher.experiment.display import plot_style as style


@pytest.mark.parametrize(
    ("values", "plain"),
    [
        ([1.9, 4.2], True),
        ([0.02, 0.07], True),
        ([1.9, 42.0], True),
        ([0.02, 3.0], False),  # more than two decades: powers of ten
        ([0.3, 2e4], False),
        ([2e-7, 5e-6], False),
        ([2e-7, 5e-7], False),  # no power of ten in it: 2 × 10⁻⁷
    ],
)
def test_a_logarithmic_axis_of_less_than_two_decades_has_plain_numbers(
    values: list[float], plain: bool, tmp_path: Path
) -> None:
    figure, (axes,) = style.grid(1)
    axes.plot([0, 1], values)
    axes.set_yscale("log")
    style.save(figure, tmp_path / "a.png")
    low, high = axes.get_ylim()
    shown = [
        (label.get_text(), place)
        for minor in (False, True)
        for label, place in zip(
            axes.yaxis.get_ticklabels(minor=minor), axes.yaxis.get_ticklocs(minor=minor), strict=False
        )
        if label.get_text() and low <= place <= high
    ]
    assert shown
    if plain:
        assert len(shown) >= 2
        assert all(float(text) == pytest.approx(place) for text, place in shown)
    else:
        assert all("10^" in text for text, _ in shown)
        assert high < 10 * low or not any(r"\times" in text for text, _ in shown)


def test_a_linear_axis_stays(tmp_path: Path) -> None:
    figure, (axes,) = style.grid(1)
    axes.plot([0, 1], [1.0, 3.0])
    before = axes.yaxis.get_major_formatter()
    style.save(figure, tmp_path / "a.png")
    assert axes.yaxis.get_major_formatter() is before
