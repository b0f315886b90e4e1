"""The sections of the benchmark: each returns the rows it measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks import gram, loop, many, measures, memory_jobs, profile, scaling, sequences, step
from benchmarks.settings import Settings

Say = Callable[[str], None]
Tables = dict[str, list[dict[str, Any]]]


def run_gram(settings: Settings, device: torch.device, compile_backend: str | None, say: Say) -> Tables:
    """Times of ξ."""
    rows = []
    for name in settings.gram_networks:
        network = settings.networks[name]
        say(f"gram: times on {network.title}")
        rows += gram.times(
            network,
            samples=settings.samples,
            rounds=settings.rounds,
            thread_counts=settings.threads,
            device=device,
            say=say,
        )
    return {"times": rows}


def run_errors(settings: Settings, device: torch.device, compile_backend: str | None, say: Say) -> Tables:
    """Errors of ξ on trained networks."""
    rows = []
    for name in settings.error_networks:
        network = settings.networks[name]
        say(f"errors: {network.title}, trained for {settings.epochs} epochs")
        rows += gram.errors(network, samples=settings.samples, epochs=settings.epochs, device=device, say=say)
    return {"errors": rows}


def run_many(settings: Settings, device: torch.device, compile_backend: str | None, say: Say) -> Tables:
    """``ln|ξ|`` of many samples."""
    networks = [settings.networks[name] for name in settings.many_networks]
    say(f"many: {settings.many_samples} samples")
    return {"many": many.rows(networks, samples=settings.many_samples, epochs=settings.many_epochs, device=device)}


def run_sequences(settings: Settings, device: torch.device, compile_backend: str | None, say: Say) -> Tables:
    """Networks without rules, or with recurrences, against the plain loop."""
    say("sequences")
    return {
        "times": sequences.times(
            settings.sequences, rounds=settings.sequence_rounds, thread_counts=settings.threads, device=device
        )
    }


def run_step(settings: Settings, device: torch.device, compile_backend: str | None, say: Say) -> Tables:
    """Times of a training step."""
    rows = []
    for name in settings.step_networks:
        network = settings.networks[name]
        say(f"step: {network.title}")
        rows += step.times(
            network,
            batch_size=settings.batch_size,
            sub_batches=settings.sub_batches,
            rounds=settings.rounds,
            thread_counts=settings.threads,
            device=device,
            compile_backend=compile_backend,
            say=say,
        )
    return {"times": rows}


def run_loop(settings: Settings, device: torch.device, compile_backend: str | None, say: Say) -> Tables:
    """Times of an epoch, in float32 and in bfloat16."""
    network = settings.networks["resnet20"]
    rows = []
    for bfloat16 in (False, True):
        say(f"loop: {network.title}{', bfloat16' * bfloat16}")
        rows += loop.times(
            network,
            images=settings.loop_images,
            batch_size=settings.batch_size,
            rounds=settings.rounds,
            thread_counts=settings.threads,
            device=device,
            compile_backend=compile_backend,
            bfloat16=bfloat16,
        )
    return {"times": rows}


def run_memory(settings: Settings, device: torch.device, compile_backend: str | None, say: Say) -> Tables:
    """Peak memory, each in a process of its own."""
    rows = []
    for name in settings.memory_networks:
        say(f"memory: {settings.networks[name].title}")
        rows += memory_jobs.measure(
            name,
            networks=settings.networks,
            samples=settings.samples,
            batch_size=settings.batch_size,
            sub_batches=settings.sub_batches,
            large=settings.large,
            names=settings.memory_contenders,
            device=device,
            say=say,
        )
    return {"memory": rows}


def run_scaling(settings: Settings, device: torch.device, compile_backend: str | None, say: Say) -> Tables:
    """Growth of the costs."""
    say("scaling")
    rows = scaling.times(
        settings.networks["resnet20"],
        samples=settings.scaling_samples,
        widths=settings.scaling_widths,
        width_samples=settings.samples,
        sub_batches=settings.scaling_sub_batches,
        batch_size=settings.batch_size,
        rounds=settings.scaling_rounds,
        device=device,
        say=say,
    )
    return {"times": rows}


def run_profile(settings: Settings, device: torch.device, compile_backend: str | None, say: Say) -> Tables:
    """Where the time of ξ goes."""
    rows = []
    for name in settings.gram_networks:
        network = settings.networks[name]
        rows += profile.shares(
            network, samples=settings.samples, rounds=settings.scaling_rounds, device=device, say=say
        )
    return {"profile": rows}


def run_forms(settings: Settings, device: torch.device, compile_backend: str | None, say: Say) -> Tables:
    """Times of the forms of γ̂."""
    network = settings.networks["resnet20"]
    say(f"forms: {network.title}")
    return {
        "times": measures.form_times(network, samples=settings.samples, rounds=settings.scaling_rounds, device=device)
    }


def run_measures(settings: Settings, device: torch.device, compile_backend: str | None, say: Say) -> Tables:
    """Times of every measure for one network."""
    network = settings.networks["resnet20"]
    return {
        "suite": measures.suite_times(
            network, samples=settings.samples, subsets=settings.measured_subsets, device=device, say=say
        )
    }


SECTIONS = {
    "gram": run_gram,
    "errors": run_errors,
    "many": run_many,
    "sequences": run_sequences,
    "profile": run_profile,
    "step": run_step,
    "loop": run_loop,
    "memory": run_memory,
    "scaling": run_scaling,
    "forms": run_forms,
    "measures": run_measures,
}
