import torch
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from rftkit import dynamics, points
from rftkit.policy import load_policy
from rftkit.sft import sft_row


def test_text_rows_train_as_they_are_read(small_preset):
    """TRL's collator marks image tokens even where there is no image: that must not move a text's positions."""
    policy = load_policy(small_preset)
    rows = points.task(points.TINY).rows(0, 5)
    batch = DataCollatorForVisionLanguageModeling(policy.processor, completion_only_loss=True)([sft_row(row) for row in rows])
    labels = batch["labels"]
    assert "pixel_values" not in batch and (labels != -100).sum() > 5 * 10
    with torch.no_grad():
        trained = policy.model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1]
    logps = dynamics.token_logps(trained, labels[:, 1:]).sum(-1)
    torch.testing.assert_close(logps, dynamics.log_likelihoods(policy, rows)[0], rtol=1e-4, atol=1e-4)
