from __future__ import annotations

import numpy as np
import torch
from sklearn import datasets

from lightning_fisher.data import load_digits


def test_the_split_is_fixed_stratified_and_whole():
    train, test, *_ = load_digits()
    assert train.images.shape == (1000, 1, 8, 8)
    assert test.images.shape == (797, 1, 8, 8)
    # The same for everybody, for good: results on it are only comparable while these images are the test set.
    assert (test.labels[:12].tolist(), int(test.images.long().sum())) == ([7, 5, 1, 5, 0, 7, 5, 9, 4, 1, 1, 4], 3978253)
    both = torch.bincount(train.labels) + torch.bincount(test.labels)
    share = torch.bincount(train.labels) / both
    assert (share - 1000 / 1797).abs().max() < 0.005

    original = datasets.load_digits()
    ours = torch.cat([train.images, test.images]).flatten(1).double().numpy() * 16 / 255
    labeled = np.concatenate([np.rint(ours), torch.cat([train.labels, test.labels])[:, None].numpy()], axis=1)
    expected = np.concatenate([original.data, original.target[:, None]], axis=1)
    assert sorted(map(tuple, labeled)) == sorted(map(tuple, expected))


def test_gray_levels_fill_the_bytes():
    train = load_digits().train
    assert sorted(train.images.unique().tolist()) == [round(level * 255 / 16) for level in range(17)]
