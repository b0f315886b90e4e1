"""The parts of the training set: disjoint, of the right size, and moved by the right seed only."""

from __future__ import annotations

import pytest
import torch

from lightning_fisher.data import partition_training_set

LABELS = torch.arange(5000) % 10


def partition(**options):
    return partition_training_set(LABELS, 10, **options)


def test_sizes_and_disjointness():
    parts = partition(validation_size=500, train_size=1000, confusion_size=300)
    sets = [
        set(indices.tolist()) for indices in (parts.clean_indices, parts.confusion_indices, parts.validation_indices)
    ]
    assert [len(s) for s in sets] == [1000, 300, 500]
    assert len(set.union(*sets)) == 1800
    assert max(set.union(*sets)) < 5000
    assert torch.equal(parts.clean_labels, LABELS[parts.clean_indices])


def test_everything_is_used_by_default():
    parts = partition(validation_size=500)
    assert len(parts.clean_indices) == 4500
    assert len(parts.confusion_indices) == len(parts.confusion_labels) == 0
    assert torch.equal(torch.cat([parts.clean_indices, parts.validation_indices]).sort().values, torch.arange(5000))
    assert torch.equal(partition().clean_indices, torch.arange(5000))
    assert len(partition(confusion_size=300).clean_indices) == 4700


def test_the_same_seeds_give_the_same_parts():
    options = {"validation_size": 500, "train_size": 1000, "confusion_size": 300, "label_noise": 0.3, "seed": 0}
    for one, other in zip(partition(**options), partition(**options), strict=True):
        assert torch.equal(one, other)


def test_the_seed_moves_training_and_confusion_set_but_not_validation():
    options = {"validation_size": 500, "train_size": 1000, "confusion_size": 300, "label_noise": 0.3}
    zero, one = partition(seed=0, **options), partition(seed=1, **options)
    assert torch.equal(zero.validation_indices, one.validation_indices)
    for part in ("clean_indices", "clean_labels", "confusion_indices", "confusion_labels"):
        assert not torch.equal(getattr(zero, part), getattr(one, part))


def test_the_validation_seed_moves_validation():
    zero, one = (partition(validation_size=500, validation_seed=seed) for seed in (0, 1))
    assert not torch.equal(zero.validation_indices, one.validation_indices)


def test_a_smaller_confusion_set_is_part_of_a_larger_one():
    small, large = (partition(train_size=1000, confusion_size=size) for size in (200, 300))
    assert torch.equal(small.clean_indices, large.clean_indices)
    assert torch.equal(small.confusion_indices, large.confusion_indices[:200])
    assert torch.equal(small.confusion_labels, large.confusion_labels[:200])


def test_confusion_labels_are_uniform_and_independent_of_the_true_ones():
    parts = partition(train_size=1000, confusion_size=4000)
    counts = torch.bincount(parts.confusion_labels, minlength=10).double()
    assert counts.sum() == 4000
    assert (counts - 400).abs().max() < 5 * (4000 * 0.1 * 0.9) ** 0.5
    right = (parts.confusion_labels == LABELS[parts.confusion_indices]).double().mean().item()
    assert right == pytest.approx(0.1, abs=5 * (0.1 * 0.9 / 4000) ** 0.5)


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.4, 1.0])
def test_label_noise_changes_exactly_its_fraction(fraction):
    parts = partition(validation_size=500, label_noise=fraction)
    true = LABELS[parts.clean_indices]
    changed = parts.clean_labels != true
    assert changed.sum() == round(fraction * 4500)
    if fraction:
        # Every one of the nine other classes is as likely.
        shift = (parts.clean_labels - true)[changed] % 10
        counts = torch.bincount(shift, minlength=10)[1:].double()
        n = int(counts.sum())
        assert (counts - n / 9).abs().max() < 5 * (n * 8 / 81) ** 0.5
    assert torch.equal(LABELS, torch.arange(5000) % 10)


def test_label_noise_leaves_the_confusion_set():
    options = {"train_size": 1000, "confusion_size": 300}
    clean, noisy = partition(**options), partition(label_noise=0.5, **options)
    assert torch.equal(clean.confusion_labels, noisy.confusion_labels)
    assert torch.equal(clean.clean_indices, noisy.clean_indices)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_size": 5000}, "`validation_size` to be from 0 to 4999 .* but got 5000"),
        ({"validation_size": -1}, "`validation_size` .* but got -1"),
        ({"validation_size": 1000, "train_size": 4001}, "`train_size` to be null or from 1 to 4000 .* but got 4001"),
        ({"train_size": 4000, "confusion_size": 1001}, "`train_size` to be null or from 1 to 3999 .* but got 4000"),
        ({"train_size": 0}, "`train_size` .* but got 0"),
        ({"confusion_size": 5000}, "`confusion_size` to be from 0 to 4999, but got 5000"),
        ({"label_noise": 1.5}, "`label_noise` to be from 0 to 1, but got 1.5"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        partition(**options)
