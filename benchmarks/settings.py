"""How much is run: the benchmark proper, and a trial of its code in seconds."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.networks import NETWORKS, QUICK, Network
from benchmarks.sequences import QUICK_SEQUENCES, SEQUENCES, Sequence


@dataclass(frozen=True)
class Settings:
    """Sizes of every section.

    Attributes:
        networks: by name.
        rounds: timed rounds of everything that is compared.
        threads: numbers of CPU threads.
        samples: N′ of the comparison of Gram matrices.
        gram_networks: what ξ is timed on.
        error_networks: what its errors are measured on.
        epochs: of training before errors are measured.
        many_networks: what ``ln|ξ|`` of many samples is taken on, besides an MLP.
        many_samples: how many.
        many_epochs: of training before.
        sequences: networks that are compared with the plain loop.
        sequence_rounds: timed rounds of those.
        batch_size: of a step.
        sub_batches: M.
        step_networks: what steps are timed on.
        loop_images: training images of an epoch.
        memory_networks: what memory is measured on.
        large: ``(N′, chunk_size)`` of the large Gram matrices.
        memory_contenders: ``None`` for all.
        scaling_samples: values of N′.
        scaling_widths: widths of ResNet-20.
        scaling_sub_batches: values of M.
        scaling_rounds: timed rounds of the scaling, and of the forms of γ̂.
        measured_subsets: subsets that all measures are timed on.
    """

    networks: dict[str, Network]
    rounds: int = 9
    threads: tuple[int, ...] = (1, 2)
    samples: int = 100
    gram_networks: tuple[str, ...] = ("resnet20", "wrn28_2")
    error_networks: tuple[str, ...] = ("resnet20", "wrn28_2")
    epochs: int = 30
    many_networks: tuple[str, ...] = ("resnet20", "wrn28_2")
    many_samples: int = 1000
    many_epochs: int = 5
    sequences: tuple[Sequence, ...] = SEQUENCES
    sequence_rounds: int = 5
    batch_size: int = 128
    sub_batches: int = 8
    step_networks: tuple[str, ...] = ("resnet20",)
    loop_images: int = 1280
    memory_networks: tuple[str, ...] = ("resnet20", "wrn28_2")
    large: tuple[tuple[int, int | None], ...] = ((1000, None), (1000, 200))
    memory_contenders: frozenset[str] | None = None
    scaling_samples: tuple[int, ...] = (10, 25, 50, 100, 200, 400)
    scaling_widths: tuple[int, ...] = (8, 16, 32, 64)
    scaling_sub_batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    scaling_rounds: int = 7
    measured_subsets: int = 1


CPU = Settings(NETWORKS)

GPU = replace(
    CPU,
    rounds=15,
    threads=(1,),
    step_networks=("resnet20", "wrn28_2", "wrn18_1_5"),
    loop_images=25_600,
    scaling_samples=(10, 25, 50, 100, 200, 400, 1000),
)
"""On a GPU threads make no difference, and three networks are trained."""

QUICK_TRIAL = Settings(
    QUICK,
    rounds=2,
    threads=(1,),
    samples=8,
    gram_networks=("resnet20",),
    error_networks=("resnet20",),
    epochs=20,
    many_networks=("resnet20",),
    many_samples=64,
    many_epochs=1,
    sequences=QUICK_SEQUENCES,
    sequence_rounds=2,
    batch_size=16,
    sub_batches=4,
    step_networks=("resnet20",),
    loop_images=64,
    memory_networks=("resnet20",),
    large=((32, 8),),
    memory_contenders=frozenset({"Lightning Fisher"}),
    scaling_samples=(4,),
    scaling_widths=(4,),
    scaling_sub_batches=(2,),
    scaling_rounds=2,
)
