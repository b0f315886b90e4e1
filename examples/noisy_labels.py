"""Three labels of ten are wrong: what the regularizer does that plain training and label smoothing don't."""

import logging
from statistics import mean, stdev

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_fisher import FisherRegularizer

SEEDS, EPOCHS, DROP = 3, 50, 30
METHODS = {"plain": {}, "label smoothing 0.1": {"smoothing": 0.1}, "fisher, beta 200": {"beta": 200.0}}
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Classifier(LightningModule):
    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
        self.smoothing = smoothing

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1], label_smoothing=self.smoothing)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[DROP])]


def run(seed: int, smoothing: float = 0.0, beta: float = 0.0) -> tuple[float, float]:
    """Train one network; its test error, and its error on the noisy training labels, in per cent."""
    seed_everything(seed, verbose=False)
    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    images, order = images.float() / 16, torch.randperm(len(labels))
    train, test = order[:500], order[500:]
    wrong = torch.rand(500) < 0.3
    noisy = torch.where(wrong, (labels[train] + torch.randint(1, 10, (500,))) % 10, labels[train])
    model = Classifier(smoothing)
    callbacks = [FisherRegularizer(beta=beta, alpha=1e-2, num_sub_batches=4)] if beta else []
    trainer = Trainer(max_epochs=EPOCHS, callbacks=callbacks, accelerator="cpu", **QUIET)
    trainer.fit(model, DataLoader(TensorDataset(images[train], noisy), batch_size=100, shuffle=True))
    predicted = model.net(images).argmax(1)
    return percent_wrong(predicted[test], labels[test]), percent_wrong(predicted[train], noisy)


def percent_wrong(predicted: Tensor, labels: Tensor) -> float:
    return 100 * float((predicted != labels).float().mean())


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for name, options in METHODS.items():
        errors, misfits = zip(*(run(seed, **options) for seed in range(SEEDS)), strict=True)
        fitted = 100 - mean(misfits)
        print(f"{name:<20} test error {mean(errors):4.1f} ± {stdev(errors):.1f} %, noisy labels fitted {fitted:.1f} %")


if __name__ == "__main__":
    main()
