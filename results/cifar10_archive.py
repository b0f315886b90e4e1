"""CIFAR-10 as the archive that commands of the results name: ``data=arrays data.path=cifar10.npz``.

``python results/cifar10_archive.py data cifar10.npz``: the images that torchvision downloads into the folder ``data``,
or finds there, written as ``train_images`` uint8 ``[50000, 32, 32, 3]``, ``train_labels`` uint8 ``[50000]``,
``test_images`` and ``test_labels`` (184 MB). The order decides which images a study takes, so that all four have to be
those that the rows of the results were made with.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10

SHA256 = {  # of the arrays' bytes
    "train_images": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "train_labels": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    "test_images": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    "test_labels": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
}


def arrays(train: CIFAR10, test: CIFAR10) -> dict[str, np.ndarray]:
    """Images and labels of both parts."""
    found = {}
    for name, part in (("train", train), ("test", test)):
        found[f"{name}_images"] = np.ascontiguousarray(part.data)
        found[f"{name}_labels"] = np.array(part.targets, dtype=np.uint8)
    return found


def write(path: Path, found: Mapping[str, np.ndarray], sums: Mapping[str, str] = SHA256) -> None:
    """Write the archive.

    Raises:
        ValueError: if an array isn't the expected one; nothing is written then.
    """
    for name, array in found.items():
        made = hashlib.sha256(array.tobytes()).hexdigest()
        if made != sums[name]:
            raise ValueError(f"Expected CIFAR-10's {name} with SHA-256 {sums[name]}, but got {made}.")
    np.savez(path, **found)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(
            "Error: Expected the folder of the images and the archive: results/cifar10_archive.py data cifar10.npz"
        )
    try:
        write(Path(sys.argv[2]), arrays(*(CIFAR10(sys.argv[1], train=part, download=True) for part in (True, False))))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"Error: {error}")
