"""Train an existing torchvision network with the regularizer, and watch its metric: two callbacks are all it takes."""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models.resnet import BasicBlock, ResNet

from lightning_fisher import FisherMonitor, FisherRegularizer

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Classifier(LightningModule):
    """An ordinary LightningModule: nothing in it knows of the regularizer."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=2e-3)
        return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[4])]


def digits() -> tuple[TensorDataset, TensorDataset]:
    """150 training and 350 test digits, as color images of 16 × 16."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)[:500]
    images = F.interpolate(images, 16).expand(-1, 3, -1, -1)
    labels = torch.tensor(labels)[:500]
    return TensorDataset(images[:150], labels[:150]), TensorDataset(images[150:], labels[150:])


def main() -> None:
    seed_everything(0, verbose=False)
    train, test = digits()
    model = Classifier(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10))
    regularizer = FisherRegularizer(beta=10.0, num_sub_batches=2)  # from the drop of the learning rate on
    monitor = FisherMonitor(train, num_subsets=2, subset_size=20, every_n_validations=5)  # every fifth epoch
    trainer = Trainer(max_epochs=5, callbacks=[regularizer, monitor], accelerator="cpu", **QUIET)
    trainer.fit(model, DataLoader(train, batch_size=25, shuffle=True))

    images, labels = test.tensors
    error = (model.eval()(images).argmax(1) != labels).float().mean()
    print(f"plain epochs 1-{regularizer.switch_epoch}, then regularized; test error {100 * error:.1f} %")
    print(f"gamma {monitor.last['gamma']:.1f} ± {monitor.last['gamma_std']:.1f} over 2 subsets of 20 training images")


if __name__ == "__main__":
    main()
