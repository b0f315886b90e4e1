"""ImageNet, down-sampled as it is read from folders of image files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_fisher.data.images import SourceSplits
from lightning_fisher.data.sources.files import IMAGENET_SPLITS, imagenet_not_found
from lightning_fisher.data.sources.image_files import check_image_files, read_image


@dataclass(frozen=True, eq=False)
class FolderImages:
    """Images that are decoded and brought to one size when they are fetched.

    Args:
        files: the image files, N of them.
        labels: int64 `[N]`.
        image_size: H = W of the images.
        random_crops: whether a fetched image is a random resized crop, mirrored with probability 1/2 (torchvision's
            `RandomResizedCrop` and `RandomHorizontalFlip`, the standard augmentation), in place of the whole image
            with its shorter side scaled to `image_size` and its center cut out.
    """

    files: Sequence[str]
    labels: Tensor
    image_size: int
    random_crops: bool = False

    def with_random_crops(self) -> FolderImages:
        """The same images, augmented as they are fetched."""
        return replace(self, random_crops=True)

    def _transform(self) -> Callable[[Any], Tensor]:
        from torchvision import transforms as T

        geometry = (
            [T.RandomResizedCrop(self.image_size), T.RandomHorizontalFlip()]
            if self.random_crops
            else [T.Resize(self.image_size), T.CenterCrop(self.image_size)]
        )
        return T.Compose([*geometry, T.PILToTensor()])

    def fetch(self, indices: Tensor) -> Tensor:
        """The images of these indices `[B]` as uint8 `[B, 3, image_size, image_size]`.

        Raises:
            ValueError: if a file cannot be read as an image, with its name.
        """
        transform = self._transform()
        return torch.stack([transform(read_image(self.files[i])) for i in indices.tolist()])


def image_folder(root: Path) -> Any:
    """Torchvision's `ImageFolder` without hidden files and folders, such as `.ipynb_checkpoints` or `._0.png`."""
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import is_image_file

    class VisibleImages(ImageFolder):
        def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
            classes = [name for name in super().find_classes(directory)[0] if not name.startswith(".")]
            return classes, {name: i for i, name in enumerate(classes)}

    def is_visible_image(path: str) -> bool:
        return is_image_file(path) and not Path(path).name.startswith(".")

    return VisibleImages(str(root), is_valid_file=is_visible_image)


def load_imagenet(
    *, num_classes: int = 1000, channels: int = 3, image_size: int = 128, data_dir: str = "data/imagenet"
) -> SourceSplits:
    """Find the images of ImageNet, or of any data set laid out like it.

    Args:
        num_classes: number of class folders.
        channels: 3; images are read as RGB, as :func:`lightning_fisher.data.sources.image_files.read_image` describes.
        image_size: H = W that images are scaled to as they are read.
        data_dir: a folder with `train/CLASS/` and `val/CLASS/`, one folder of image files a class. The official
            validation images, the only labeled ones beside the training set, are the test set. Hidden files and
            folders are left out.

    Returns:
        The training and the test images, to be decoded when they are fetched. That they can be was checked
        (:func:`lightning_fisher.data.sources.image_files.check_image_files`).

    Raises:
        FileNotFoundError: if the folders or the images are missing.
        ValueError: if the classes of the two folders differ or are not `num_classes`, `channels` is not 3, or a file
            cannot be read as an image, with its name.
    """
    if channels != 3:
        raise ValueError(f"Expected argument `channels` to be 3 for `imagenet`, but got {channels}.")
    sources, classes = [], []
    for split in IMAGENET_SPLITS:
        try:
            folder = image_folder(Path(data_dir) / split)
        except FileNotFoundError as error:
            raise imagenet_not_found(data_dir, str(error).splitlines()[0]) from error
        if len(folder.classes) != num_classes:
            raise ValueError(
                f"Expected argument `num_classes` to be the number of class folders in "
                f"{str(Path(data_dir) / split)!r}, {len(folder.classes)}, but got {num_classes}."
            )
        classes.append(folder.classes)
        sources.append(FolderImages([file for file, _ in folder.samples], torch.tensor(folder.targets), image_size))
    if classes[0] != classes[1]:
        raise ValueError(f"Expected the same class folders in train and val of {str(data_dir)!r}, but they differ.")
    check_image_files([file for source in sources for file in source.files])
    return SourceSplits(*sources)
