"""``python -m lightning_fisher.experiment.zoo FOLDER``: the networks of a zoo again, from their rows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lightning_fisher.command_line.parser import OneLineParser
from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.records.result import require_rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 1, and prints one line, on a mistake."""
    parser = OneLineParser(prog="python -m lightning_fisher.experiment.zoo", description=__doc__)
    parser.add_argument("folder", type=Path, help="any folder with runs (result.json) at or below it")
    parser.add_argument("--pack", action="store_true", help="write the weights of all networks into weights.npz")
    parser.add_argument("--train", type=Path, metavar="OUT", help="train networks without weights again, into OUT")
    parser.add_argument(
        "--measure", nargs="+", metavar="NAME", help="add measures to the rows: names, or a group (all)"
    )
    parser.add_argument("--subsets", type=int, metavar="N", help="with --measure: on the first N subsets only")
    given = parser.parse_args(arguments)
    try:
        if given.measure is not None:
            from lightning_fisher.experiment.zoo.measuring import add_measures

            add_measures(given.folder, given.measure, partial(print, flush=True), subsets=given.subsets)
            return 0
        if given.subsets is not None:
            raise ConfigError(f"Expected option `--subsets` with `--measure`, but got {given.subsets} without it.")
        return _run(given.folder, given.train, pack_them=given.pack)
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on.", file=sys.stderr)
        return 130
    except (ConfigError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


def _run(folder: Path, out: Path | None, *, pack_them: bool) -> int:
    found = require_rows(folder)
    from lightning_fisher.experiment.zoo.loading import networks
    from lightning_fisher.experiment.zoo.weights import find_weights, pack

    without = [(run, row) for run, row in found if find_weights(folder, run) is None]
    print(f"{len(found)} networks, {len(found) - len(without)} with weights", flush=True)
    if out is not None:
        return _train(without, out)
    if without:
        print(f"no weights: {', '.join(run.name for run, _ in without[:3])}{' …' if len(without) > 3 else ''}")
        print(f"train them again: python -m lightning_fisher.experiment.zoo {folder} --train OUT")
        return 1
    if pack_them:
        weights = {run.name: one.net.state_dict() for (run, _), one in zip(found, networks(folder), strict=True)}
        path = pack(folder, weights)
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
    return 0


def _train(missing: Sequence[tuple[Path, dict[str, list[str]]]], out: Path) -> int:
    from lightning_fisher.experiment.sweep.jobs import job_command, job_environment

    failed = 0
    for run, row in missing:
        print(f"training {run.name}", flush=True)
        code = subprocess.run(job_command(row["overrides"], out / run.name), env=job_environment()).returncode
        failed += code != 0
    print(f"{len(missing) - failed} of {len(missing)} trained: {out}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
