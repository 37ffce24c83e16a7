"""The command line: `python -m rftkit run|bench|pretrain|record|spectra`.

Exit codes: 0 all went well, 1 a notebook failed, 2 bad input (told in one sentence on stderr), 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys

import rftkit
from rftkit.config import PRESETS, UserError

OWN_COMMANDS = {  # command: (module, what it does)
    "bench": ("bench", "time an RFT step beside plain TRL"),
    "claims": ("claims", "print what became of each claim of the papers, computed from run records"),
    "colab": ("colab", "write the notebooks' set-up cells and Colab badges"),
    "cost": ("cost", "predict memory, time and downloads of a notebook at a tier"),
    "launch": ("launch", "train a notebook's arms on several GPUs: accelerate, vLLM, or an export to EasyR1 or verl"),
    "drift": ("drift", "measure how far finished runs went from their bases: KL, weights, rotation"),
    "exercises": ("exercises", "write a copy of a notebook's exercises, for learners or with the solutions"),
    "export": ("export", "merge a finished run into one plain model, for vLLM and evaluators"),
    "guide": ("guide", "print which method kept more, by what one has, computed from run records"),
    "grade": ("grade", "check the exercises in a learner's notebook (this runs its code)"),
    "parity": ("parity", "repeat the recorded points of ParityMNIST (notebook 08)"),
    "pretrain": ("pretrain", "rebuild the bundled tiny base model"),
    "questions": ("questions", "write a student's sheet of questions, with answers if asked"),
    "record": ("shelf", "make the recorded runs again: those that are missing or have other settings"),
    "train": ("train", "train one arm by its name"),
    "spectra": ("spectra", "measure how fine-tuning changed each weight matrix, beside nulls"),
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m rftkit", description=rftkit.__doc__)
    parser.add_argument("--version", action="version", version=f"rftkit {rftkit.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run notebooks and write an executed copy and an HTML page of each")
    run.add_argument("notebooks", nargs="*", help="numbers or names, such as 02; all of them if none is given")
    run.add_argument("--preset", default="tiny", help=f"one of {', '.join(PRESETS)} (default: tiny)")
    run.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters",
        help="set a parameter of the notebooks; may be repeated",
    )  # fmt: skip
    run.add_argument("--out", help="folder for what is made (default: $RFTKIT_HOME, else build)")
    run.add_argument(
        "--jobs", type=int, help="notebooks at a time (default: 2 at the tiny tier where there is room, else 1)"
    )
    for name, (_, text) in OWN_COMMANDS.items():
        commands.add_parser(name, help=text)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code. The heavy modules are imported by the command that needs them."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv and argv[0] in OWN_COMMANDS:  # these read their own options
            return importlib.import_module(f"rftkit.{OWN_COMMANDS[argv[0]][0]}").main(argv[1:])
        args = build_parser().parse_args(argv)
        from rftkit.notebooks import run_notebooks

        return run_notebooks(args.notebooks, args.preset, dict(args.parameters), args.out, args.jobs)
    except UserError as error:
        print(f"rftkit: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rftkit: interrupted.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
