"""No Lightning: the metric and the regularized step in a training loop of one's own."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_fisher import FisherMetric
from lightning_fisher.functional import regularized_gradient

EPOCHS, DROP, BETA = 40, 20, 10.0


def measure(net: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """γ̂ over three random subsets of 60 training images, the same every time."""
    metric, generator = FisherMetric(), torch.Generator().manual_seed(0)
    for _ in range(3):
        subset = torch.randperm(len(images), generator=generator)[:60]
        metric.update(net, images[subset], labels[subset])
    return metric.compute()


def main() -> None:
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    train, test = (images[:500], labels[:500]), (images[500:], labels[500:])

    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [DROP])
    for epoch in range(EPOCHS):
        for batch in torch.randperm(500).split(100):
            inputs, targets = train[0][batch], train[1][batch]
            optimizer.zero_grad()
            if epoch < DROP:  # plain until the learning rate drops
                cross_entropy(net(inputs), targets).backward()
            else:
                result = regularized_gradient(net, inputs, targets, beta=BETA, num_sub_batches=4)
                for parameter, gradient in zip(net.parameters(), result.gradient, strict=True):
                    parameter.grad = gradient
            optimizer.step()
        scheduler.step()
        if (epoch + 1) % 10 == 0:
            gamma = measure(net, *train)
            error = (net(test[0]).argmax(1) != test[1]).float().mean()
            phase = "plain" if epoch < DROP else f"R {float(result.penalty):.1e}"
            print(
                f"epoch {epoch + 1}: test error {100 * error:.1f} %, gamma {float(gamma['gamma']):.1f} "
                f"± {float(gamma['gamma_std']):.1f}, {phase}"
            )


if __name__ == "__main__":
    main()
