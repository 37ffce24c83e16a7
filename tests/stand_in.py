"""Three old probes as tasks to be learnt in a row: for mechanics, not for learning."""

import dataclasses

from rftkit.methods import Suite
from rftkit.tasks import PROBES, Task

ORDER = ("color", "exist", "count")


def tasks(preset, thinking):
    def task(name):
        def make(rng, split):
            row = PROBES[name].make(rng, split)
            answer = f"<think> {row.answer} </think> <answer> {row.key[0]} </answer>" if thinking else row.key[0]
            prompt = f"{row.prompt} think first ." if thinking else row.prompt
            return dataclasses.replace(row, prompt=prompt, answer=answer, data={"target": row.key[0]})

        return Task(name, make, PROBES[name].score)

    return {name: task(name) for name in ORDER}


def words(completions, **_):
    """Dense: an untrained model gets nothing right, and without spread RFT has no gradient."""
    return [0.9 * len(set(c[0]["content"].split())) / 12 for c in completions]


def form(completions, **_):
    return [0.1 * ("<think>" in c[0]["content"]) for c in completions]


SUITE = Suite("mock", tasks, words, form, lambda preset: {"color": PROBES["color"], "lookup": PROBES["lookup"]})
