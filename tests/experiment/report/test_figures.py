"""What figures say in words, and where values stand on their axes."""

from __future__ import annotations

import math

import pytest

from lightning_fisher.experiment.display import plot_style as style
from lightning_fisher.experiment.report.figures import ZERO, changes_with, in_symbols, positions, what_is_drawn


def test_values_that_grow_by_factors_stand_at_their_logarithms() -> None:
    assert positions([1, 10, 100, 300]) == pytest.approx([0, 1, 2, math.log10(300)])


def test_a_zero_stands_by_itself_before_the_least_of_them() -> None:
    assert positions([0, 1, 10, 100]) == pytest.approx([-ZERO, 0, 1, 2])


def test_other_numbers_stand_at_their_place_and_names_evenly() -> None:
    assert positions([0, 50, 100, 400]) == [0, 50, 100, 400]
    assert positions(["none", "flips", "crops"]) == [0, 1, 2]


def test_greek_letters_in_labels_of_older_rows() -> None:
    assert in_symbols("weight of the penalty, beta") == "weight of the penalty, β"
    assert in_symbols("a beta2 and betas") == "a beta2 and betas"


def test_how_many_networks_a_line_is_of() -> None:
    assert what_is_drawn([[1], [2], []]) == "One network each"
    assert "standard deviation of 2 to 3 networks each" in what_is_drawn([[1, 2], [1, 2, 3]])


def test_minus_signs() -> None:
    assert style.signed("τ = -0.14 [-0.79, 0.63]") == "τ = −0.14 [−0.79, 0.63]"
    assert style.signed("ResNet-8") == "ResNet-8"


def test_a_legend_and_a_title_take_room_of_their_own_and_are_not_wider_than_the_figure() -> None:
    figure, (axis,) = style.grid(1, width=3.2)
    height = figure.get_figheight()
    lines = [axis.plot([0, 1], [i, i])[0] for i in range(4)]
    style.title(figure, "Which of these methods has the lowest error of all that are shown?")
    style.legend(figure, lines, [f"a method with a long name, {i}" for i in range(4)], "Mean of " + 8 * "networks ")
    assert figure.get_figheight() > height + 5 * style.LINE
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    for artist in (figure.legends[0], figure._suptitle):
        box = artist.get_window_extent(renderer)
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width


def test_a_symbol_has_no_article() -> None:
    assert changes_with("β") == "What changes with β?"
    assert changes_with("weight of the penalty, β") == "What changes with the weight of the penalty, β?"
