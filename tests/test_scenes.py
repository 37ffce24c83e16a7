import random

import numpy as np
import pytest

from rftkit import scenes
from rftkit.pretrain import random_cells
from rftkit.scenes import CELL, COLORS, SHAPES, Cell


def landscape(**at):
    cells = [Cell(p) for p in range(9)]
    for place, thing in at.items():
        cells[int(place[1:])] = Cell(int(place[1:]), *thing)
    return tuple(cells)


def test_same_key_same_pixels_and_no_global_randomness():
    before = random.getstate(), np.random.get_state()[1].copy()
    a = scenes.draw(landscape(p4=("circle", "red")), scenes.rng_for(1, "x", 2))
    b = scenes.draw(landscape(p4=("circle", "red")), scenes.rng_for(1, "x", 2))
    c = scenes.draw(landscape(p4=("circle", "red")), scenes.rng_for(1, "x", 3))
    assert (a.pixels == b.pixels).all() and (a.pixels != c.pixels).any()
    assert random.getstate() == before[0] and (np.random.get_state()[1] == before[1]).all()
    assert a.image.size == (84, 84) and a.image.mode == "RGB"


def test_every_place_can_be_told_from_its_own_pixels():
    """Mean colour tells the ground, and brightness within a ground tells the column, over many kinds of weather."""
    mean = np.array([
        scenes.draw(landscape(), scenes.rng_for("w", i)).pixels.reshape(3, CELL, 3, CELL, 3).mean((1, 3)) for i in range(50)
    ])  # (50, row, col, rgb)  # fmt: skip
    light = mean.sum(-1)
    assert (light[:, :, :-1].min(0) > light[:, :, 1:].max(0)).all()  # left always brighter than mid, mid than right
    blueness = mean[..., 2] / mean.sum(-1)
    greenness = mean[..., 1] / mean.sum(-1)
    assert blueness[:, 0].min() > blueness[:, 1:].max()  # sky
    assert greenness[:, 1].min() > greenness[:, 2].max()  # hill above sand


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("color", COLORS)
def test_objects_are_drawn_inside_their_cell_only(shape, color):
    plain = scenes.draw(landscape(), scenes.rng_for(0)).pixels.astype(int)
    cell = Cell(4, shape, color)
    with_object = scenes.draw(tuple(cell if p == 4 else Cell(p) for p in range(9)), scenes.rng_for(0)).pixels.astype(
        int
    )
    moved = abs(with_object - plain).max(-1) > 40  # the noise is another draw: a few grey levels
    inside = np.zeros((84, 84), bool)
    inside[28:56, 28:56] = True
    assert moved[inside].sum() > 40 and not moved[~inside].any()


def test_digits_differ_from_each_other():
    masks = [scenes._digit_mask(d) for d in range(10)]
    assert all((masks[a] != masks[b]).sum() >= 9 for a in range(10) for b in range(a))


def test_splits_never_share_a_layout():
    seen: dict[tuple[Cell, ...], str] = {}
    counts = dict.fromkeys(scenes.SPLITS, 0)
    for i in range(3000):
        cells = random_cells(scenes.rng_for("s", i))
        split = scenes.split_of(cells)
        counts[split] += 1
        assert seen.setdefault(cells, split) == split
    assert 0.06 < counts["test"] / 3000 < 0.14 and 0.06 < counts["validation"] / 3000 < 0.14
