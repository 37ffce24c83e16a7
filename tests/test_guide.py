"""The guide: each piece of advice is held against the run records, with the sign that its words have, and the page shows what came out."""

import pytest
from fake_runs import eval_row, record

from rftkit import claims, guide, judged, runs
from rftkit.__main__ import main
from rftkit.config import UserError
from rftkit.judged import Given

ROOT = runs.RECORDED_DIR.parent.parent
PAGE = ROOT / "course/guide.md"
BY_WORDS = {(a.do, a.instead): a for a in guide.ADVICE}


def puzzles(lost, seeds=3):
    """Runs on the jigsaw that lose so many points where half is solved, and a little more from seed to seed."""
    made = []
    for method, points in lost.items():
        for seed in range(seeds):
            run = record(method, seed, name=f"{method}-s{seed}")
            prior = 0.9 - (points + seed) / 100
            run.metrics = [eval_row(0, 0.0, 0.9), eval_row(20, 0.5, prior), eval_row(40, 0.9, prior)]
            made.append(run)
    return Given(judged.arms_of(made))


@pytest.fixture(scope="module")
def recorded():
    return guide.given_of()


def words(given):
    return {(a.do, a.instead): guide.word(p) for a, p in guide.seen(given)}


@pytest.mark.parametrize(
    ("better", "worse", "do", "instead"),
    [
        ("sft_rft_lr", "sft", "SFT at RFT's rate, which is lower", "SFT at its usual rate"),
        ("rft", "sft", "RFT", "SFT at its usual rate"),
        ("rft", "sft_rft_lr", "RFT", "SFT at RFT's rate"),
        ("lora_sft", "sft", "LoRA", "SFT of all weights"),
        ("sft_rollouts", "sft", "SFT on its right replies", "SFT on bare answers"),
        ("sft_rollouts_x0.1", "sft_rft_lr", "SFT on its right replies at RFT's rate", "SFT on bare answers at RFT's rate"),
        ("sft_dft", "sft_rollouts", "DFT loss", "plain SFT on them"),
        ("sft_foreign", "sft_far", "put it into the base's words", "imitate it as it is"),
    ],
)  # fmt: skip
def test_advice_is_good_where_it_loses_less_and_bad_where_it_loses_more(better, worse, do, instead):
    good, bad = puzzles({better: 5, worse: 30}), puzzles({better: 30, worse: 5})
    assert words(good)[do, instead] == "keeps more" and words(bad)[do, instead] == "keeps less"
    assert BY_WORDS[do, instead].kept(good).of[1] == pytest.approx(25)
    alike, short = puzzles({better: 5, worse: 5}), puzzles({better: 5, worse: 30}, seeds=2)
    assert words(alike)[do, instead] == "cannot be told" and words(short)[do, instead] == "too few seeds"


def test_parts_of_claims_have_the_ledgers_numbers(recorded):
    lines = {line.claim.id: line for line in claims.ledger(recorded.arms, recorded.studies)}
    for name, says, do in (("04-once", "once minus fresh", "imitate its replies, sampled anew as it learns"),
                           ("H1", "peak minus end", "stop at its validation peak"),
                           ("C1", "end, many", "many wordings")):  # fmt: skip
        (wanted,) = [p for p in lines[name].parts if p.says.startswith(says)]
        (found,) = [p for a, p in guide.seen(recorded) if a.do == do]
        assert wanted.seeds and (found.told, found.seeds) == (wanted.told, wanted.seeds)


def test_oracle_labels_are_held_against_both_others_by_the_points_of_the_recorded_seeds(recorded):
    one, grpo = (
        BY_WORDS["labels as the base spreads them", other].kept(recorded) for other in ("one fixed answer", "GRPO")
    )
    apart = judged.more_lost(recorded, "one", "grpo")
    assert set(one.of) == set(grpo.of) == set(apart.of) and len(one.of) >= 3
    assert all(one.of[s] > 0 for s in one.of)  # one digit loses more than the oracle in every seed


def test_what_is_not_compared_at_equal_accuracy_says_what_was_gained(recorded):
    table = [row.split(" | ") for row in guide.markdown(recorded).splitlines()[2:]]
    so = {(row[1], row[2]): row[-1] for row in table}
    for advice in guide.ADVICE:
        told = so[advice.do, advice.instead]
        assert ("gain" in told) == (advice.gained is not None), told
        if advice.do != "RFT from its end":  # two policies of one path: no second skill is set beside
            assert ("gain" in told) == ("equal" not in advice.where), told
    less = judged.minus(recorded, "seven_self", "seven_sft", judged.learnt).of.values()
    assert f"gains less: {sum(less) / len(less):+.1f} (" in so["SFT on own right replies", "SFT on demonstrations"]
    assert "gain cannot be told apart" in so["GRPO", "SFT at RFT's rate"]
    few = judged.Given({arm: {s: r for s, r in some.items() if s < 2} for arm, some in recorded.arms.items()})
    assert guide.beside(BY_WORDS["GRPO", "SFT at RFT's rate"], few) == ""


def test_without_runs_nothing_is_said_and_every_part_is_found():
    empty = words(Given({}))
    assert set(empty.values()) == {"not recorded"} and len(empty) == len(guide.ADVICE)
    told = guide.markdown(Given({})).splitlines()
    assert len(told) == 2 + len(guide.ADVICE) and {row.count("|") for row in told} == {len(guide.HEADER) + 1}


def test_a_part_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"H1 has 0 parts that begin with 'valley'"):
        guide._claim("H1", "valley")(Given({}))
    with pytest.raises(UserError, match=r"H1 has 2 parts"):
        guide._claim("H1", "peak")(Given({}))


def test_the_page_shows_the_table_of_the_recorded_runs():
    assert main(["guide", "--check", str(PAGE)]) == 0, "run `python -m rftkit guide --write course/guide.md`"


def test_a_page_is_written_and_checked(tmp_path, capsys):
    page, at = tmp_path / "page.md", ["--runs", str(tmp_path)]  # where no run is
    page.write_text(f"# Before\n{guide.BEGIN}\nold\n{guide.END}\nAfter\n")
    assert main(["guide", *at, "--check", str(page)]) == 1
    assert "- old" in capsys.readouterr().err
    assert main(["guide", *at, "--write", str(page)]) == 0 and main(["guide", *at, "--check", str(page)]) == 0
    assert page.read_text().startswith("# Before\n") and page.read_text().endswith("\nAfter\n")
    page.write_text(page.read_text().replace("not recorded", "keeps everything", 1))
    assert main(["guide", *at, "--check", str(page)]) == 1
    page.write_text("nothing")
    capsys.readouterr()
    assert main(["guide", *at, "--write", str(page)]) == 2
    assert "has no place for the guide" in capsys.readouterr().err
