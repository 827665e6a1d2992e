"""Laws of which checkpoints stay."""

import math

import pytest

from dit_video.checkpoint.retention import Best, Keep

STEPS = [700, 100, 300, 200, 600, 400, 500]
SCORES = {100: 5.0, 200: 2.0, 300: math.nan, 400: 2.0, 500: 7.0, 600: math.inf}


def kept(keep: Keep, scores: dict[int, float] = SCORES) -> set[int]:
    return set(STEPS) - keep.to_delete(STEPS, scores)


def best(num: int = 1, higher: bool = False) -> Best:
    return Best(evaluator="fvd", scalar="fvd", num=num, higher=higher)


@pytest.mark.parametrize("latest", range(1, 9))
def test_the_latest_stay_whatever_the_order_they_are_named_in(latest):
    assert kept(Keep(latest=latest)) == set(sorted(STEPS)[-latest:])


@pytest.mark.parametrize("every", [1, 100, 200, 250, 300, 1000])
def test_multiples_stay(every):
    assert kept(Keep(latest=1, every=every)) == {700} | {step for step in STEPS if step % every == 0}


@pytest.mark.parametrize(
    ("higher", "order"), [(False, [400, 200, 100, 500]), (True, [500, 100, 400, 200])], ids=["lower", "higher"]
)
@pytest.mark.parametrize("num", [1, 2, 3, 4, 5])
def test_the_best_stay_and_of_equal_ones_the_later(higher, order, num):
    """Of finite scores: a step that was not judged, or whose score is none, is not among them."""
    assert kept(Keep(latest=1, best=best(num, higher))) == {700, *order[:num]}


def test_whatever_any_rule_wants_stays():
    assert kept(Keep(latest=2, every=300, best=best())) == {600, 700, 300, 400}
    assert kept(Keep(latest=1, best=best()), {}) == {700}
    assert Keep(latest=1).to_delete([], {}) == set()


def test_three_stay_where_nothing_else_is_said():
    assert kept(Keep()) == {500, 600, 700}
    assert (best().num, best().higher) == (1, False)


def test_numbers_are_at_least_one():
    for make, message in (
        (lambda: Keep(latest=0), "Keep.latest=0"),
        (lambda: Keep(every=0), "Keep.every=0"),
        (lambda: best(num=0), "Best.num=0"),
    ):
        with pytest.raises(ValueError, match=f"{message}: must be at least 1"):
            make()
    assert Keep(latest=1, every=1, best=best(num=1)).every == 1
