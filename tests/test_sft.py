import dataclasses

import pytest
import torch
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from rftkit import chains, dynamics, points, sft
from rftkit.policy import load_policy
from rftkit.sft import sft_row
from rftkit.tasks import JIGSAW


def test_text_rows_train_as_they_are_read(small_preset):
    """TRL's collator marks image tokens even where there is no image: that must not move a text's positions."""
    policy = load_policy(small_preset)
    rows = points.task(points.TINY).rows(0, 5)
    batch = DataCollatorForVisionLanguageModeling(policy.processor, completion_only_loss=True)(
        [sft_row(row) for row in rows]
    )
    labels = batch["labels"]
    assert "pixel_values" not in batch and (labels != -100).sum() > 5 * 10
    with torch.no_grad():
        trained = policy.model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1]
    logps = dynamics.token_logps(trained, labels[:, 1:]).sum(-1)
    torch.testing.assert_close(logps, dynamics.log_likelihoods(policy, rows)[0], rtol=1e-4, atol=1e-4)


def no_evaluation(policy):
    row = {"kind": "eval", "new_exact": 0.0, "new_hit": 0.0, "new_n": 1, "prior": {}, "prior_mean": 0.0}
    return row, []


@pytest.mark.parametrize("micro", [0, 1, 3, 6, 16, 64])
def test_an_update_has_as_many_examples_as_the_preset_says(small_preset, micro):
    made = sft.sft_arguments(dataclasses.replace(small_preset, sft_batch=16, micro_batch=micro))
    assert made["per_device_train_batch_size"] * made["gradient_accumulation_steps"] == 16
    assert made["per_device_train_batch_size"] <= (micro or 16)


@pytest.mark.parametrize("task", [chains.task(), JIGSAW])
def test_an_update_is_the_same_in_one_piece_and_accumulated(small_preset, tmp_path, task):
    """The mean is over the tokens of all eight examples, not of the means of each: averaging those, or dropping micro-batches, is
    what made published SFT baselines too weak (2604.23747). Answers of different lengths, several updates, AdamW and clipping."""
    data = sft.Data(task.name, lambda policy, folder: sft.Lazy(64, lambda i: task.row(0, i, "train")))
    rows = [len(task.row(0, i, "train").answer.split()) for i in range(64)]
    trained, records = {}, {}
    for micro in (8, 2, 1):
        preset = dataclasses.replace(small_preset, sft_batch=8, micro_batch=micro)
        records[micro], trained[micro] = sft.train_sft(
            preset, 0, data=data, lr=1e-2, steps=4, evaluate=no_evaluation, home=tmp_path / str(micro)
        )
    whole, start = trained[8].model.state_dict(), load_policy(small_preset).model.state_dict()
    moved = max(float((whole[n] - w).abs().max()) for n, w in start.items())
    assert moved > 1e-3 and (task is JIGSAW or len(set(rows)) > 2)
    for micro in (2, 1):
        for key, close in (("grad_norm", 1e-4), ("loss", 1e-5)):
            pairs = [[row[key] for row in records[m].metrics if row["kind"] == "train"] for m in (8, micro)]
            assert pairs[1] == pytest.approx(pairs[0], rel=close)
        gaps = [float((trained[micro].model.state_dict()[n] - w).abs().max()) for n, w in whole.items()]
        assert max(gaps) < 0.02 * moved, micro
