"""OpenR1 on a small local copy of its file: the same loader, the same columns, no network."""

import dataclasses
import importlib.util

import pytest
from datasets import Dataset, Features, Value

from rftkit import blends, hub_rows, math_data
from rftkit.config import UserError
from rftkit.recording import lazy_dataset
from rftkit.rft import rft_row

SYSTEM = "Think about it first. Put the answer in \\boxed{}."
N = 1000
text = Value("string")
turns = [{"content": text, "role": text}]
# as the card of a set of the same origin lists them (SII-Enigma/OpenR1-Math-R1-8.5k)
FEATURES = Features({
    "data_source": text, "prompt": turns, "target": turns, "ability": text,
    "reward_model": {"ground_truth": text, "style": text}, "extra_info": {"index": Value("int64"), "split": text},
})  # fmt: skip


def record(i):
    solution = f"<think>\n{i} and {i} make {2 * i}.\n</think>\n\nThe half is \\boxed{{\\frac{{{2 * i}}}{{2}}}}."
    return {
        "data_source": "openr1", "ability": "math", "extra_info": {"index": i, "split": "default"},
        "prompt": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"What is half of {2 * i}?"}],
        "target": None if i % 50 == 7 else [{"role": "assistant", "content": solution}],
        "reward_model": {"ground_truth": str(i), "style": "rule"},
    }  # fmt: skip


def copy_of(folder, records, features=FEATURES):
    folder.mkdir()
    Dataset.from_list(records, features=features).to_parquet(str(folder / math_data.SOURCE.files))
    (folder / "other.parquet").write_text("not a parquet file")
    return dataclasses.replace(math_data.SOURCE, repo=str(folder))


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    return copy_of(tmp_path_factory.mktemp("hub") / "openr1", [record(i) for i in range(N)])


@pytest.fixture
def source(copied, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("RFTKIT_HOME", str(tmp_path_factory.getbasetemp() / "home"))
    return copied


def number(row):
    return int(row.data["value"])


def test_a_row(source):
    row = math_data.openr1(source).row(0, 3, "train")
    i = number(row)
    assert row.prompt == f"{SYSTEM}\n\nWhat is half of {2 * i}?" and row.image is None
    assert row.answer == (record(i)["target"] or [{"content": ""}])[0]["content"]
    assert row.answer.startswith("<think>\n") or i % 50 == 7
    assert row.data == {"value": str(i)} and row.key == (str(i),)


def test_each_question_is_asked_once_an_epoch(source):
    task = math_data.openr1(source)
    size = len(math_data._pool(source, "train"))
    first, second = ([number(task.row(0, i, "train")) for i in range(k * size, (k + 1) * size)] for k in (0, 1))
    assert len(set(first)) == size and sorted(first) == sorted(second) and first != second
    assert [number(task.row(1, i, "train")) for i in range(20)] != first[:20]
    assert [number(r) for r in task.rows(0, 20, "train")] == first[:20]
    assert any(number(r) % 50 == 7 and r.answer == "" for r in task.rows(0, size, "train"))


def test_splits_share_no_question(source):
    pools = [set(math_data._pool(source, split)) for split in ("train", "validation", "test")]
    assert sum(map(len, pools)) == N == len(set.union(*pools)) and 0 < len(pools[1]) < 30 and 0 < len(pools[2]) < 30
    assert {math_data.split_of(f"What is half of {2 * i}?") for i in pools[2]} == {"test"}
    with pytest.raises(UserError, match="no split 'exam'"):
        math_data.openr1(source).row(0, 0, "exam")


def test_rows_feed_training(source):
    task = math_data.openr1(source)
    data = lazy_dataset(lambda i: rft_row(task.row(0, i, "train")), 10)
    got = data[2]
    assert got["prompt"] == [{"role": "user", "content": task.row(0, 2, "train").prompt}] and set(got) == {
        "prompt",
        "value",
    }
    said = [[{"role": "assistant", "content": f"\\boxed{{{got['value']}}}"}], [{"role": "assistant", "content": "no"}]]
    assert math_data.right(said, value=[got["value"]] * 2, trainer_state=None) == [1.0, 0.0]


def test_verdicts(source):
    row = math_data.openr1(source).row(0, 0, "train")
    task = math_data.openr1(source)
    assert task.score(f"so \\boxed{{{row.data['value']}}}", row) == "correct"
    assert task.score("so \\boxed{-1}", row) == "wrong"
    assert task.score("no idea", row) == "unparseable"


def test_arms_train_on_it(source, small_preset, tmp_path):
    preset = dataclasses.replace(small_preset, eval_n=2)
    words = [  # that the small tokenizer knows
        record(i) | {
            "prompt": [{"role": "user", "content": f"what is {i % 9} + {i // 9} ?"}],
            "target": [{"role": "assistant", "content": f"<think> {i % 9} + {i // 9} = {i % 9 + i // 9} </think> so {i % 9 + i // 9} ."}],
        }
        for i in range(81)
    ]  # fmt: skip
    source = copy_of(tmp_path / "words", words)
    for name in ("math_sft", "math_prefix", "math_rft"):
        run, _ = blends.math_arm(name, preset, 0, steps=2, asked=3, source=source, home=tmp_path)
        assert [row["step"] for row in run.evals()] == [0, 1, 2] and run.status == "done" and run.method == name
        assert run.evals()[-1]["new_n"] == 3 and run.samples
    with pytest.raises(UserError, match="no arm 'math_else': choose math_sft, math_rft"):
        blends.math_arm("math_else", preset, 0, source=source)


def test_another_form_is_told(source, tmp_path):
    odd = record(1) | {"prompt": [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "2"}]}
    with pytest.raises(UserError, match=r"turns \['user', 'assistant'\] where a system prompt and a question"):
        math_data.openr1(copy_of(tmp_path / "odd", [odd])).row(0, 0, "train")
    few = dataclasses.replace(copy_of(tmp_path / "few", [record(1)]), columns=("prompt", "solution"))
    with pytest.raises(UserError, match="has no column solution"):
        math_data.openr1(few).row(0, 0, "train")
    bare = record(2) | {"prompt": record(2)["prompt"][1:]}
    assert math_data.openr1(copy_of(tmp_path / "bare", [bare])).row(0, 0, "train").prompt == "What is half of 4?"
    with pytest.raises(UserError, match="None of the 1 questions belongs to the split test: use a larger set"):
        math_data._pool(copy_of(tmp_path / "one", [record(3)]), "test")


def test_without_math_verify_one_sentence_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for use in (math_data.openr1, lambda: math_data.right([[{"content": "\\boxed{1}"}]], ["1"])):
        with pytest.raises(UserError, match=r"not installed: `pip install math-verify==0\.9\.0`\.$"):
            use()


@pytest.mark.parametrize(
    ("value", "text", "verdict"),
    [
        (r"\frac{1}{2}", r"<think>\boxed{3}? no</think> It is \boxed{0.5}.", "correct"),
        (r"\frac{1}{2}", r"It is \boxed{2}.", "wrong"),
        (r"\frac{1}{2}", "It is 0.5.", "unparseable"),
        (r"$2\sqrt{3}$", r"Hence \boxed{\sqrt{12}}.", "correct"),
        ("A", r"\boxed{A}", "correct"),
        ("17", "", "unparseable"),
        (" ", r"\boxed{3}", "unparseable"),
    ],
)
def test_math_verify_itself(value, text, verdict):
    assert math_data.score(text, value) == verdict


@pytest.mark.skipif("__import__('os').environ.get('RFTKIT_HUB') == '1'", reason="the network is on")
def test_without_network_the_user_is_told_what_to_do(monkeypatch):
    missing = dataclasses.replace(math_data.SOURCE, repo="nobody/openr1-of-no-one")
    with pytest.raises(UserError, match=r"nobody/.* cannot be loaded .*: check the network"):
        math_data.openr1(missing).row(0, 0, "train")
    monkeypatch.setattr(math_data, "SOURCE", missing)
    assert math_data.revision() == "not resolved"


@pytest.mark.hub
def test_the_hub_has_what_we_expect():
    row = math_data.openr1().row(0, 0, "train")
    assert row.prompt and row.answer and row.data["value"] and len(hub_rows.load(math_data.SOURCE)) == 45_714
