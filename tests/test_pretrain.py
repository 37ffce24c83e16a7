import json
import re

import numpy as np
import torch

from rftkit import jigsaw, pretrain, scenes, tasks
from rftkit.policy import ImageTextProcessor
from rftkit.pretrain import MIXTURE, Recipe, build_model, build_pool, build_processor, mixture_row
from rftkit.tasks import JIGSAW, PROBES

SMALL = Recipe(hidden=32, layers=1, heads=2, kv_heads=1, mlp=32, vision_hidden=16, vision_blocks=1, steps=4)


def test_the_jigsaw_is_not_in_the_mixture(monkeypatch):
    """No shuffled landscape, no image answered with indices, not the jigsaw's prompt."""
    drawn = []
    draw = scenes.draw
    monkeypatch.setattr(scenes, "draw", lambda cells, rng: drawn.append(cells) or draw(cells, rng))
    prompts = {jigsaw.prompt(3, 3, c, "short", think) for c in jigsaw.CONVENTIONS for think in (True, False)}
    indices = re.compile(r"<answer>(?: \d+){2,}")
    seen = set()
    for i in range(3000):
        row = mixture_row(1, i)
        seen.add(row.task)
        assert not any(p in row.prompt for p in prompts) and "shuffled" not in row.prompt
        if row.image is not None:
            assert not indices.search(row.answer)
    assert seen == set(MIXTURE)
    for cells in drawn:
        places = [c.place for c in cells]
        assert places == list(range(9)) or len(set(places)) < 9  # a landscape in order, or no permutation at all


def test_pretraining_draws_from_the_training_split_only(monkeypatch):
    drawn = []
    draw = scenes.draw
    monkeypatch.setattr(scenes, "draw", lambda cells, rng: drawn.append(cells) or draw(cells, rng))
    for i in range(300):
        mixture_row(1, i)
    assert {scenes.split_of(c) for c in drawn} == {"train"}


def test_every_word_of_every_task_is_in_the_vocabulary():
    tokenizer = build_processor().tokenizer
    rows = [mixture_row(2, i) for i in range(500)] + [
        t.row(0, i) for t in (*PROBES.values(), JIGSAW) for i in range(50)
    ]
    for row in rows:
        ids = tokenizer(row.prompt + " " + row.answer)["input_ids"]
        assert tokenizer.unk_token_id not in ids, row
        assert tokenizer.decode(tokenizer(row.answer)["input_ids"]) == row.answer  # scoring sees what was written


def test_bulk_pixels_equal_the_image_processor():
    images = [r.image for r in JIGSAW.rows(0, 3)]
    bulk = pretrain.patchify(np.stack([np.asarray(i) for i in images]))
    one = build_processor().image_processor(images=images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(bulk, one)


def test_pool_forward_equals_the_models_own_forward():
    """Features, positions and logits of the fast pretraining path, against the model called as everyone calls it."""
    processor = build_processor()
    model = build_model(SMALL, processor, 0).eval()
    rows = [PROBES["color"].row(0, 0), PROBES["arithmetic"].row(0, 0)]
    pool = build_pool(model, processor, rows, SMALL)
    with torch.no_grad():
        fast, targets, _ = pretrain.forward(model, pool, torch.tensor([0, 1]))
        slow = []
        for row in rows:
            prompt = processor.apply_chat_template(tasks.messages(row), add_generation_prompt=True, tokenize=False)
            images = [row.image] if row.image is not None else None
            inputs = processor(images=images, text=[prompt + row.answer + "<|im_end|>"], return_tensors="pt")
            n = len(processor.tokenizer(row.answer + "<|im_end|>")["input_ids"])
            slow.append(model(**inputs).logits[0, -n - 1 : -1])
            assert (inputs["input_ids"][0, -n:] == targets[:n]).all() or len(slow) == 2
    torch.testing.assert_close(fast, torch.cat(slow), atol=1e-4, rtol=1e-4)


def test_given_thinking_carries_no_loss():
    processor = build_processor()
    model = build_model(SMALL, processor, 0)
    row = next(r for i in range(200) if (r := pretrain.lookup_row(scenes.rng_for(i), 9)).given)
    pool = build_pool(model, processor, [row, PROBES["digits"].row(0, 0)], SMALL)
    weighted = processor.tokenizer.decode(pool.ids[0][pool.weights[0] > 0])
    assert weighted.startswith("<answer>") and "<think>" not in weighted
    torch.testing.assert_close(pool.weights.sum(1), torch.ones(2))


def test_an_interrupted_rebuild_goes_on_where_it_was(tmp_path, monkeypatch):
    """Stop stage 1 after its first checkpoint, resume, and end with the weights of an uninterrupted run."""
    processor = build_processor()
    rows = [mixture_row(0, i) for i in range(40)]
    recipe = Recipe(**{**SMALL.__dict__, "short_batch": 4, "long_batch": 2})
    monkeypatch.setattr(pretrain, "CHECKPOINT_EVERY", 2)

    def run(work, steps):
        work.mkdir(exist_ok=True)
        model = build_model(recipe, processor, 0)
        model.model.visual.requires_grad_(False)
        pool = build_pool(model, processor, rows, recipe)
        clock = pretrain.Clock(work / "seconds.json")
        pretrain.train_language(model, pool, pool, recipe, 0, work, clock, stop=steps)
        return model.state_dict()

    whole = run(tmp_path / "a", 4)
    run(tmp_path / "b", 2)
    resumed = run(tmp_path / "b", 4)
    assert json.loads((tmp_path / "b" / "seconds.json").read_text()) > 0
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_processor_survives_saving(tmp_path):
    processor = build_processor()
    processor.save_pretrained(tmp_path)
    again = ImageTextProcessor.from_pretrained(tmp_path)
    row = JIGSAW.row(0, 0)
    one, two = (
        p.apply_chat_template(
            [tasks.messages(row)], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        for p in (processor, again)
    )
    assert set(one) == set(two) and all(torch.equal(one[k], two[k]) for k in one)
    assert "<|im_start|> assistant" in processor.tokenizer.decode(one["input_ids"][0])
