"""Image models of torchvision, timm and segmentation_models_pytorch, in tiny configurations."""

from __future__ import annotations

import segmentation_models_pytorch as smp
import timm
import timm.loss
import timm.utils
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.models.resnet import BasicBlock
from torchvision.models.segmentation.fcn import FCN, FCNHead
from torchvision.transforms import v2

from tests.callbacks.tiny import Classifier
from tests.compatibility.case import SAMPLES, Case, Fisher
from tests.compatibility.cases_setups import cross_entropy

CLASSES = 3


def images(size=16):
    return [(torch.randn(3, size, size), torch.tensor(i % CLASSES)) for i in range(SAMPLES)]


def masks():
    return [(torch.randn(3, 16, 16), torch.randint(CLASSES, (16, 16))) for _ in range(SAMPLES)]


def slow_sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4)


def classifier(make, **options):
    return lambda: Classifier(make(**options), optimizer=slow_sgd)


class Segments(Classifier):
    """torchvision's dict of outputs, with the auxiliary loss of its reference scripts."""

    def training_step(self, batch, batch_idx):
        loss = segmentation_loss(self, batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return {"loss": loss}


def segmentation_loss(module, batch):
    x, y = batch
    out = module(x)
    return F.cross_entropy(out["out"], y) + 0.5 * F.cross_entropy(out["aux"], y)


class Out(nn.Module):
    """The main output alone, for the metric."""

    def __init__(self, module):
        super().__init__()
        self.net = module.net

    def forward(self, x):
        return self.net(x)["out"]


def small_resnet():
    """As people fit it to small images: another stem, the last stage left out."""
    net = tv.ResNet(BasicBlock, [1, 1, 1, 1])
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.MaxPool2d(2)
    net.layer4, net.fc = nn.Identity(), nn.Linear(256, CLASSES)
    return net


def fcn():
    resnet = tv.ResNet(BasicBlock, [1, 1, 1, 1])
    backbone = IntermediateLayerGetter(resnet, {"layer1": "aux", "layer2": "out"})
    return FCN(backbone, FCNHead(128, CLASSES), FCNHead(64, CLASSES))


class Dice(Classifier):
    """A loss over all pixels of the batch together: no mean over samples."""

    loss = smp.losses.DiceLoss("multiclass")

    def training_step(self, batch, batch_idx):
        loss = dice(self, batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss


def dice_of_each(outputs, targets):
    """That of single samples, which the loss of the batch is no mean of."""
    return torch.stack([Dice.loss(one[None], its[None]) for one, its in zip(outputs, targets, strict=True)])


def dice(module, batch):
    x, y = batch
    return Dice.loss(module(x), y)


class MixedUp(Classifier):
    """timm's recipe in a LightningModule: mixed images, soft targets, an averaged copy updated by a hook."""

    def __init__(self, net):
        super().__init__(net, optimizer=slow_sgd)
        self.mix = v2.MixUp(num_classes=CLASSES)
        self.ema = timm.utils.ModelEmaV3(net, decay=0.9)

    def training_step(self, batch, batch_idx):
        loss = soft_cross_entropy(self, batch)
        self.log("train_loss", loss)
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.ema.update(self.net)


def soft_cross_entropy(module, batch):
    x, y = module.mix(*batch)
    return timm.loss.SoftTargetCrossEntropy()(module(x), y)


class Detects(Classifier):
    """Lists of images and of dicts of boxes, as torchvision's detectors take them; a dict of losses."""

    def training_step(self, batch, batch_idx):
        losses = self.net(*batch)
        self.log_dict(losses)
        return sum(losses.values())


def detection_loss(module, batch):
    return sum(module.net(*batch).values())


def fcos():
    backbone = nn.Sequential(nn.Conv2d(3, 32, 3, stride=8, padding=1), nn.ReLU())
    backbone.out_channels = 32
    return FCOS(
        backbone,
        CLASSES,
        min_size=32,
        max_size=32,
        anchor_generator=AnchorGenerator(((8,),), ((1.0,),)),
        head=FCOSHead(32, 1, CLASSES, num_convs=1),
    )


def scenes():
    boxes = torch.tensor([[4.0, 4.0, 20.0, 20.0]]).to(torch.get_default_dtype())
    return [
        (torch.rand(3, 32, 32), {"boxes": boxes + torch.randint(8, ()), "labels": torch.tensor([i % CLASSES])})
        for i in range(SAMPLES)
    ]


def lists(samples):
    pictures, targets = zip(*samples, strict=True)
    return list(pictures), [dict(target) for target in targets]


CASES = [
    Case("ResNet", "torchvision", classifier(small_resnet), images, cross_entropy),
    Case(
        "ViT",
        "torchvision",
        classifier(
            tv.VisionTransformer,
            image_size=16,
            patch_size=8,
            num_layers=1,
            num_heads=2,
            hidden_dim=16,
            mlp_dim=32,
            dropout=0.1,
            num_classes=CLASSES,
        ),
        images,
        cross_entropy,
    ),
    Case(
        "ConvNeXt",
        "torchvision",
        classifier(
            tv.ConvNeXt,
            block_setting=[CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)],
            stochastic_depth_prob=0.3,
            num_classes=CLASSES,
        ),
        images,
        cross_entropy,
    ),
    Case(
        "segmentation, FCN with auxiliary loss, batches and outputs as dicts",
        "torchvision",
        lambda: Segments(fcn(), optimizer=slow_sgd),
        masks,
        segmentation_loss,
        fisher=Fisher(select=Out),
    ),
    Case(
        "detection, FCOS, lists of images and boxes",
        "torchvision",
        lambda: Detects(fcos(), optimizer=slow_sgd),
        scenes,
        detection_loss,
        lists,
        Fisher(lists, lambda module: module.net, refused="FisherMonitor can't measure Detects"),
    ),
    Case(
        "ViT",
        "timm",
        classifier(timm.create_model, model_name="test_vit", img_size=16, patch_size=8, num_classes=CLASSES),
        images,
        cross_entropy,
    ),
    Case(
        "EfficientNet with stochastic depth, MixUp and ModelEmaV3",
        "timm",
        lambda: MixedUp(
            timm.create_model("test_efficientnet", num_classes=CLASSES, drop_path_rate=0.2, output_stride=8)
        ),
        images,
        soft_cross_entropy,
        apart="ema.",
    ),
    Case(
        "NFNet, scaled weights",
        "timm",
        classifier(timm.create_model, model_name="test_nfnet", num_classes=CLASSES),
        images,
        cross_entropy,
    ),
    Case(
        "U-Net with Dice loss",
        "segmentation_models_pytorch",
        lambda: Dice(
            smp.Unet(
                "timm-mobilenetv3_small_minimal_100",
                encoder_weights=None,
                encoder_depth=3,
                decoder_channels=(16, 8, 4),
                classes=CLASSES,
            ),
            optimizer=slow_sgd,
        ),
        masks,
        dice,
        fisher=Fisher(loss_fn=dice_of_each),
    ),
]
