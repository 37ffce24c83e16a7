"""What a tier trains and tests on: drawn scenes for the tiny one, photographs and published benchmarks for the GPU tiers."""

from __future__ import annotations

from rftkit import tasks
from rftkit.config import Preset, UserError


def new_task(preset: Preset) -> tasks.Task:
    """The jigsaw as this preset plays it: its grid, its wording, its images."""
    if preset.images == "scenes":
        plain = (preset.rows, preset.cols, preset.prompt_style) == (3, 3, "short")
        return tasks.JIGSAW if plain else tasks.jigsaw_task(preset.rows, preset.cols, preset.prompt_style, tasks.landscape)
    raise UserError("COCO is not there yet: use the preset 'tiny'.")


def probes(preset: Preset) -> dict[str, tasks.Task]:
    """The probes of prior skill, by name."""
    if preset.images == "scenes":
        return tasks.PROBES
    raise UserError("The Hub's probes are not there yet: use the preset 'tiny'.")
