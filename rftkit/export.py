"""`python -m rftkit export RUN FOLDER`: a finished run as one plain model, which vLLM, transformers and evaluators can load.

An adapter is merged into the weights that it was trained beside: NF4 weights are dequantised first, so that the merged model gives
the replies that the trained one gave. Merged into the published weights, which it never saw, it would give others. The command then
prints how lmms-eval asks that model the benchmarks that are our probes, by its own task definitions: our scores are shares of correct
answers on a sample, the published ones are lmms-eval's to compute.
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

from peft import PeftModel

from rftkit import hub, runs
from rftkit.config import Preset, UserError
from rftkit.policy import Policy, load_policy, load_trained

# our probes by the names of lmms-eval's task files (lmms_eval/tasks/*, seen in its repository; not run here)
LMMS_EVAL = {
    "pope": "pope", "refcoco": "refcoco_bbox_rec_val", "docvqa": "docvqa_val", "mme": "mme", "mmstar": "mmstar", "mmmu": "mmmu_val",
    "mmlu_pro": "mmlu_pro",
}  # fmt: skip


def merged(preset: Preset, weights: Path) -> Policy:
    """The preset's base with the weights that a run saved in a folder, without quantisation and without an adapter."""
    policy = load_policy(preset)
    if preset.quantize != "none":
        policy.model = policy.model.dequantize()
    load_trained(policy, weights)
    if isinstance(policy.model, PeftModel):
        policy.model = policy.model.merge_and_unload()
    return policy


def export(run: Path, folder: Path) -> Preset:
    """Write the merged model of a finished run, in the layout of the Hub. Returns the run's preset.

    Raises UserError for a folder without a finished run, and for one to write into that is not empty.
    """
    record = runs.load_record(run / "record.json")
    if record.status != "done":
        raise UserError(f"The run in {run} is not finished: train it to its end, then export it.")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: name a new folder.")
    try:
        preset = Preset(**record.config["preset"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"The record in {run} does not say what it was trained with ({error}): it is of another version."
        ) from error
    policy = merged(preset, run / "final")
    policy.model.save_pretrained(folder)
    policy.processor.save_pretrained(folder)
    for path in folder.glob("*_config.json"):  # other programs do not know our processor without a video part
        path.write_text(json.dumps(_renamed(json.loads(path.read_text())), indent=2) + "\n")
    return preset


def _renamed(config: dict[str, object]) -> dict[str, object]:
    return {**config, **({"processor_class": "Qwen2_5_VLProcessor"} if "processor_class" in config else {})}


def evaluator_command(preset: Preset, folder: Path) -> str:
    """lmms-eval's command for the preset's probes and MMLU-Pro. Raises UserError where the probes are drawn, not published."""
    if preset.images == "scenes":
        raise UserError("The probes of this tier are drawn by rftkit itself, so that no other evaluator knows them.")
    names = [LMMS_EVAL[name] for name in (*hub.probes(preset), "mmlu_pro")]
    words = [
        "python",
        "-m",
        "lmms_eval",
        "--model",
        "qwen2_5_vl",
        "--model_args",
        f"pretrained={folder},max_pixels={preset.max_pixels}",
    ]
    return shlex.join([*words, "--tasks", ",".join(names), "--batch_size", "1", "--output_path", f"{folder}-evaluated"])


def main(argv: list[str]) -> int:
    """Merge a finished run into one plain model, and print how lmms-eval would examine it."""
    parser = argparse.ArgumentParser(prog="python -m rftkit export", description=main.__doc__)
    parser.add_argument("run", type=Path, help="a run's folder, with record.json and final/")
    parser.add_argument("folder", type=Path, help="where the model is written")
    args = parser.parse_args(argv)
    preset = export(args.run, args.folder)
    print(f"Written to {args.folder}.")
    if preset.images != "scenes":
        print(f"Where lmms-eval is installed:\n{evaluator_command(preset, args.folder)}")
    return 0
