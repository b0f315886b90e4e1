"""The layers of a metric card in words and numbers."""

from __future__ import annotations

from lightning_fisher.experiment.report.tables import markdown
from lightning_fisher.experiment.scoring.card import Card


def layer_table(card: Card) -> str:
    """What every layer contributes."""
    lines = [
        [
            name,
            f"{layer.parameters:,}",
            f"{int(layer.ranks.min())}",
            f"{100 * float(layer.share.mean()):.1f}",
            f"{float(layer.log_trace.mean()):.1f}",
            f"{float(layer.log_det.mean()):.1f}",
        ]
        for name, layer in card.subsets.layers.items()
    ]
    headings = ["layer", "parameters", "rank", "share of γ̂ (%)", "ln tr ξ (nats)", "ln det ξ, non-zero part (nats)"]
    return markdown(headings, lines)


def layer_reading(card: Card) -> list[str]:
    """What the layers' figure shows, in sentences."""
    ordered = sorted(card.subsets.layers.items(), key=lambda item: -float(item[1].share.mean()))
    total, shown = 0.0, []
    for name, layer in ordered:
        shown.append(name)
        total += float(layer.share.mean())
        if total >= 0.5:
            break
    names = ", ".join(shown[:-1]) + (" and " if len(shown) > 1 else "") + shown[-1]
    return [
        f"ξ is the sum of the layers' matrices. The share of a layer is how much γ̂ changes with its part; the shares "
        f"sum to one, and half of it is {names}. Log-determinants of unequal rank don't compare."
    ]
