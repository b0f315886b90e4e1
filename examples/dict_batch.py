"""A LightningModule of one's own whose batches are dicts: do two handwritten digits show the same number?"""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, default_collate

from lightning_fisher import FisherMonitor, FisherRegularizer

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Pairs(Dataset):
    """Pairs of digits as dicts of tensors; every other pair shows the same number."""

    def __init__(self, size: int, seed: int) -> None:
        images, labels = (torch.tensor(array).float() for array in load_digits(return_X_y=True))
        left, right = torch.randint(len(images), (2, 20 * size), generator=torch.Generator().manual_seed(seed))
        same = labels[left] == labels[right]
        chosen = torch.cat([same.nonzero()[: size // 2], (~same).nonzero()[: size // 2]]).flatten()
        self.left, self.right, self.same = images[left[chosen]] / 16, images[right[chosen]] / 16, same[chosen].long()

    def __len__(self) -> int:
        return len(self.same)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"left": self.left[i], "right": self.right[i], "same": self.same[i]}


class Siamese(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))  # used twice a batch
        self.head = nn.Linear(32, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head((self.features(left) - self.features(right)).square())

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch["left"], batch["right"]), batch["same"])

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[10])]


def inputs_and_targets(samples: list[dict[str, Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
    """What the monitor feeds the module: ``module(**inputs)`` and its targets."""
    batch = default_collate(samples)
    return batch, batch.pop("same")


def main() -> None:
    seed_everything(0, verbose=False)
    train, test = Pairs(400, seed=0), Pairs(400, seed=1)
    model = Siamese()
    regularizer = FisherRegularizer(beta=10.0, num_sub_batches=4)  # splits the tensors of the dict
    monitor = FisherMonitor(train, num_subsets=3, subset_size=50, collate_fn=inputs_and_targets)
    trainer = Trainer(max_epochs=20, callbacks=[regularizer, monitor], accelerator="cpu", **QUIET)
    trainer.fit(model, DataLoader(train, batch_size=40, shuffle=True))

    inputs, targets = inputs_and_targets([test[i] for i in range(len(test))])
    error = (model(**inputs).argmax(1) != targets).float().mean()
    print(f"test error {100 * error:.1f} %, gamma {monitor.last['gamma']:.1f} ± {monitor.last['gamma_std']:.1f}")
    print(f"gradients of the parts of a batch: mean cosine {trainer.callback_metrics['fisher/grad_cosine']:.2f}")


if __name__ == "__main__":
    main()
