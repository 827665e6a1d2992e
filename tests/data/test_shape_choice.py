"""Laws of the choice of shapes: it loses less than one shape and than a grid, and never more with more shapes."""

import numpy as np
import pytest

from dit_video.data.shape_choice import Budget, _candidates, _of_aspects, best_single, choose, grid, loss_of
from dit_video.data.shapes import BatchShape, Extents, assigned
from dit_video.data.transforms import ClipTransform

BUDGET = Budget(ClipTransform(num_frames=17, size=(64, 64)), lengths=(1, 5, 9, 13, 17), multiple=8)
KINDS = [(200, 720, 1280), (200, 1280, 720), (40, 480, 640), (6, 480, 640), (1, 640, 480), (1, 512, 512), (30, 32, 32)]


@pytest.fixture(scope="module")
def extents() -> Extents:
    rng = np.random.default_rng(0)
    rows = np.array(KINDS)[rng.choice(len(KINDS), 300, p=[0.3, 0.1, 0.2, 0.1, 0.1, 0.1, 0.1])]
    return Extents(rows[:, 0], np.full(300, 25.0), rows[:, 1:])


def work(shape: BatchShape) -> float:
    """Of the clips nearest to equal work, where attention is a quarter of the largest clip's."""
    each = [n * (1 + n / 3 / (17 * 64 * 64)) for n in (np.prod(shape.clip), 17 * 64 * 64)]
    return max(1, round(64 * each[1] / each[0])) * each[0]


def total(shapes: list[BatchShape], extents: Extents) -> float:
    return loss_of(shapes, extents, BUDGET, [work(shape) for shape in shapes]).total


def test_it_loses_less_than_the_best_single_shape_and_than_a_grid_by_hand(extents):
    chosen = {num: choose(extents, BUDGET, num, work) for num in (1, 2, 4, 8)}
    lost = [total(shapes, extents) for shapes in chosen.values()]
    assert lost == sorted(lost, reverse=True)
    assert all(len(shapes) <= num for num, shapes in chosen.items())
    assert best_single(extents, BUDGET, work) == chosen[1]
    assert total(chosen[8], extents) < 0.5 * min(total(grid(extents, BUDGET, 8), extents), lost[0])


def test_with_a_shape_for_each_kind_little_is_lost_and_no_picture_left_out(extents):
    chosen = choose(extents, BUDGET, 8, work)
    assert (assigned(extents, chosen, BUDGET.clips) >= 0).all()
    assert BatchShape(num_frames=17, size=(32, 32)) in chosen
    assert {shape.num_frames for shape in chosen} == {1, 5, 17}
    loss = loss_of(chosen, extents, BUDGET, [work(shape) for shape in chosen])
    assert loss.cut + loss.filled < 0.1
    assert loss.left_out == 0


def test_shapes_are_within_the_budget():
    assert BUDGET.shape(16, 64, 64).clip == (13, 64, 64)
    assert BUDGET.shape(17, 36, 120).clip == (17, 32, 120)
    assert BUDGET.shape(0, 64, 64) is None
    valid = Budget.of(ClipTransform(num_frames=9, size=(32, 48)), lambda t, h, w: t % 4 == 1 and not (h % 16 or w % 16))
    assert (valid.lengths, valid.multiple, valid.area) == ((1, 5, 9), 16, 32 * 48)
    with pytest.raises(ValueError, match=r"\(8, 32, 48\): the task takes no clips of it"):
        Budget.of(ClipTransform(num_frames=8, size=(32, 48)), lambda t, h, w: False)


def test_sizes_that_are_tried_are_those_of_the_videos_rounded_either_way():
    """21 is 2.6 steps of 8 and 27 is 3.4; one side at a time is moved by half a step."""
    tried = {(24, 24), (16, 24), (24, 32)}
    for size, sizes in ((21, 27), tried), ((27, 21), {(width, height) for height, width in tried}):
        one = Extents(np.array([9]), np.array([25.0]), np.array([size]))
        assert {shape.clip for shape in _candidates(one, BUDGET)} == {(9, *size) for size in sizes}


def test_shapes_by_hand_are_of_the_common_aspects_upright_and_lying():
    fine = Budget(ClipTransform(num_frames=16, size=(1000, 1000)), lengths=tuple(range(1, 17)), multiple=1)
    for length, frames in ((1.0, 16), (0.5, 8), (0.01, 1)):
        shapes = list(_of_aspects(fine, length))
        assert {shape.num_frames for shape in shapes} == {frames}
        aspects = sorted(shape.size[1] / shape.size[0] for shape in shapes)
        np.testing.assert_allclose(aspects, [9 / 16, 2 / 3, 3 / 4, 1, 4 / 3, 3 / 2, 16 / 9, 21 / 9], rtol=3e-3)


def test_no_chosen_shape_can_be_exchanged_for_one_that_loses_less():
    """Of a set of eight kinds for which taking the best one after another ends elsewhere."""
    rng = np.random.default_rng(9)
    rows = np.stack([rng.choice([1, 5, 9, 13, 17, 30], 60), *rng.integers(20, 100, (2, 60))], 1)
    rows = rows[rng.choice(8, 60)]
    kinds = Extents(rows[:, 0], np.full(60, 25.0), rows[:, 1:])
    chosen, tried = choose(kinds, BUDGET, 2, work), _candidates(kinds, BUDGET)
    others = [[*chosen[:place], shape, *chosen[place + 1 :]] for place in range(2) for shape in tried]
    assert total(chosen, kinds) <= min(total(shapes, kinds) for shapes in others) + 1e-9
