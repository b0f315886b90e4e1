"""``python -m benchmarks``: measure, and write ``NAME.json``, ``NAME.md`` and ``NAME.png``."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
import warnings
from pathlib import Path

import torch

from benchmarks import figure, record, tables
from benchmarks.sections import SECTIONS
from benchmarks.settings import CPU, GPU, QUICK_TRIAL

RESULTS = Path(__file__).parent / "results"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    sections = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time Lightning Fisher and its neighbors side by side, as ratios. See docs/benchmarks.md.",
    )
    sections.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"what to measure, of {', '.join(SECTIONS)}; default: all"
    )
    sections.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu or cuda")
    sections.add_argument("--name", help="of the result files; default: cpu or cuda, or quick")
    sections.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    sections.add_argument(
        "--compile",
        default="auto",
        metavar="BACKEND",
        help="torch.compile backend of compiled loops and a compiled plain step; no: none; auto: inductor on a GPU",
    )
    sections.add_argument("--quick", action="store_true", help="try everything out in seconds on tiny networks")
    sections.add_argument("--report", action="store_true", help="measure nothing; write .md and .png from the .json")
    return sections


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = parser().parse_args(arguments)
    unknown = [section for section in options.sections if section not in SECTIONS]
    if unknown:
        return _refuse(f"Expected sections among {list(SECTIONS)}, but got {unknown}.")
    if options.device not in ("auto", "cpu", "cuda"):
        return _refuse(f"Expected --device to be auto, cpu or cuda, but got {options.device!r}.")
    if options.device == "cuda" and not torch.cuda.is_available():
        return _refuse("Expected a CUDA device for --device cuda, but there is none.")
    cuda = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if cuda else "cpu")
    settings = QUICK_TRIAL if options.quick else GPU if cuda else CPU
    backend = {"auto": "inductor" if cuda else None, "no": None}.get(options.compile, options.compile)
    if backend is not None and backend not in (known := torch.compiler.list_backends(exclude_tags=())):
        return _refuse(f"Expected --compile to be auto, no or one of {known}, but got {backend!r}.")
    path = options.out / f"{options.name or ('quick' if options.quick else device.type)}.json"
    try:
        sections = record.read(path)
    except ValueError as error:
        return _refuse(str(error))
    if not options.report:
        command = shlex.join(["python", "-m", "benchmarks", *(sys.argv[1:] if arguments is None else arguments)])
        for name in options.sections or SECTIONS:
            where = record.provenance(device, command)
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # deprecations inside the other packages, one a pass
                found = SECTIONS[name](settings, device, backend, _say)
            sections[name] = {
                "provenance": where,
                "settings": record.plain(settings),
                "load_average_after": record.load_average(),
                "seconds": round(time.perf_counter() - start, 1),
                "tables": found,
            }
            record.write(path, sections)
            print(tables.of_section(name, sections[name]), flush=True)
    elif not sections:
        return _refuse(f"Expected results in {path}, but there are none; measure first.")
    path.with_suffix(".md").write_text(tables.markdown(path.stem, sections))
    drawn = figure.draw(sections, path.with_suffix(".png"))
    _say(f"written: {path}, {path.with_suffix('.md').name}" + (f", {drawn.name}" if drawn else ""))
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _refuse(line: str) -> int:
    print(line, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
