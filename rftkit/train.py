"""Trains one arm by its name: what `accelerate launch` starts in each process, and useful alone.

python -m rftkit train sft --preset tiny --seed 3 -p sft_steps 30
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from torch import distributed

from rftkit.arms import ARMS, arms_of
from rftkit.config import PRESETS, Preset, UserError, get_preset
from rftkit.notebooks import convert
from rftkit.policy import is_main


def preset_from(name: str, fields: Sequence[Sequence[str]]) -> Preset:
    """The preset `name` with fields replaced, given as pairs of text. Raises UserError for what does not fit."""
    usual = get_preset(name)
    return get_preset(name, **{key: convert(key, text, getattr(usual, key, None)) for key, text in fields})


def add_preset(parser: argparse.ArgumentParser, default: str) -> None:
    """The options that `preset_from` reads."""
    parser.add_argument("--preset", default=default, help=f"one of {', '.join(PRESETS)} (default: {default})")
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("FIELD", "VALUE"), dest="fields",
        help="replace a field of the preset; may be repeated",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)


def main(argv: list[str]) -> int:
    """Train one arm, or read its finished run."""
    parser = argparse.ArgumentParser(prog="python -m rftkit train", description=main.__doc__)
    parser.add_argument("arm", help=f"one of {', '.join(ARMS)}; points_rft_N starts from update N of the tier's plan")
    add_preset(parser, "tiny")
    args = parser.parse_args(argv)
    preset = preset_from(args.preset, args.fields)
    if args.arm not in (known := arms_of(preset.name)):
        raise UserError(f"There is no arm {args.arm!r}: choose from {', '.join(known)}.")
    record, _ = known[args.arm](preset, args.seed, None)
    if is_main():
        last = record.evals()[-1]
        print(
            f"{record.name}: {record.status} after {last['step']} updates, exact {last['new_exact']:.2f}, prior {last['prior_mean']:.3f}"
        )
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()  # a process that ends while gloo's threads run may be aborted, its work done
    return 0
