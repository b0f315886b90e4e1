"""The suspicious images, for the eye."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from lightning_fisher.label_errors.scores import LabelScores

COLUMNS = 6  # of the picture, which a telephone still shows


def plot_suspects(
    path: str | Path,
    images: Tensor,
    scores: LabelScores,
    *,
    kind: str = "gradient_norm",
    count: int = 40,
    class_names: Sequence[str] | None = None,
    wrong: Tensor | None = None,
) -> None:
    """Draw the most suspicious images with their given and their predicted label, as a PNG.

    Args:
        path: of the PNG.
        images: uint8 ``[n, C, H, W]``, one or three channels.
        scores: of these images.
        kind: see `LabelScores.score`.
        count: how many images.
        class_names: names of the classes; their numbers where there are none.
        wrong: which labels are known to be wrong, bool ``[n]``: their titles are green, those of right labels red
            and say so.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chosen = scores.ranking(kind)[:count].tolist()
    predicted = scores.predicted_labels
    columns = min(COLUMNS, max(1, len(chosen)))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(max(3.2, 1.05 * columns), 1.3 * rows + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, i in zip(axes.flat, chosen, strict=False):
        image = images[i].permute(1, 2, 0).squeeze(-1).numpy()
        axis.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        given, suggested = (
            class_names[k] if class_names is not None else str(k)
            for k in (int(scores.given_labels[i]), int(predicted[i]))
        )
        color = "black" if wrong is None else "#1a7f37" if bool(wrong[i]) else "#cf222e"
        name = f"{given} → {suggested}" if given != suggested else given
        right = wrong is not None and not bool(wrong[i])  # said in words too, for gray print
        axis.set_title(f"{name}\n(right)" if right else name, fontsize=10, color=color, pad=3)
    title = f"Which labels of {len(predicted):,} are wrong?\nThe {len(chosen)} most suspicious: given → predicted"
    if wrong is not None:
        title += f"\n{int(wrong[chosen].sum())} of them known to be wrong (green)"
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=200)
