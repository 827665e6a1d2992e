"""Laws of the judges of text: an n-gram model is a probability, finds the source's entropy, and guards have teeth."""

import numpy as np
import pytest

from dit_video.evaluation.card import differing_scale
from dit_video.evaluation.ngram import KneserNey
from dit_video.evaluation.text import _ratio, failed_guards, variety

RNG = np.random.default_rng(0)
CHAIN = RNG.dirichlet(np.full(6, 0.4), 6)


def rows(num: int, length: int, seed: int, temperature: float = 1.0) -> np.ndarray:
    """Rows of a Markov chain of letters."""
    rng = np.random.default_rng(seed)
    p = CHAIN ** (1 / temperature)
    made, p = np.zeros((num, length), np.int64), p / p.sum(1, keepdims=True)
    made[:, 0] = rng.integers(0, 6, num)
    for i in range(1, length):
        made[:, i] = (p[made[:, i - 1]].cumsum(1) > rng.random((num, 1))).argmax(1)
    return made


def entropy_rate() -> float:
    values, vectors = np.linalg.eig(CHAIN.T)
    pi = np.real(vectors[:, np.argmax(np.real(values))])
    return float(-(pi / pi.sum() @ (CHAIN * np.log2(CHAIN + 1e-30)).sum(1)))


@pytest.mark.parametrize("order", [1, 2, 4])
def test_it_is_a_probability_whatever_comes_before(order):
    model = KneserNey(rows(20, 30, 1), 8, order)
    for prefix in ([], [0], [7], [1, 2, 3], [7, 7, 7, 7]):
        asked = np.array([[*prefix, token] for token in range(8)])
        assert abs((2.0 ** -model.bits(asked)[:, -1]).sum() - 1) < 1e-9


def test_it_finds_the_entropy_of_a_source_and_no_less_of_new_text():
    model = KneserNey(rows(400, 100, 1), 6, 3)
    found = model.bits(rows(200, 100, 2))[:, 1:].mean()
    assert entropy_rate() - 0.02 < found < entropy_rate() + 0.03


def test_a_large_vocabulary_has_shorter_n_grams():
    assert KneserNey(rows(2, 9, 1), 4096, 6).order == 5


def words(made: np.ndarray) -> str:
    return " ".join("".join(chr(97 + token) for token in row) for row in made)


def judged(made: np.ndarray) -> dict[str, float]:
    return variety(made, words(made), words(made))


def test_other_text_of_the_source_passes_and_sharpened_text_fails_though_it_is_likelier():
    real, other, sharp = (judged(made) for made in (rows(400, 100, 1), rows(400, 100, 2), rows(400, 100, 3, 0.7)))
    assert failed_guards(other, real) == []
    assert failed_guards(sharp, real)
    model = KneserNey(rows(400, 100, 4), 6, 3)
    assert model.bits(rows(100, 100, 3, 0.7)).mean() < model.bits(rows(100, 100, 2)).mean()


def test_text_that_repeats_itself_and_words_that_are_none_are_seen():
    real = rows(50, 40, 1)
    looped = np.tile(real[:, :8], 5)
    assert any("repetition" in line for line in failed_guards(judged(looped), judged(real)))
    spelt = variety(real, "the cat satt", "the cat sat on the mat")
    assert spelt["spelling"] == pytest.approx(2 / 3)


def test_the_interval_of_a_ratio_covers_it():
    made = [_ratio(x, y) for x, y in ((RNG.random(50) * 3, RNG.random(50) + 1) for _ in range(400))]
    covered = np.mean([abs(value - 1.0) < half for value, half in made])
    assert 0.9 < covered < 0.99


def test_cards_of_other_rows_are_not_compared():
    card = {"metric": "bits per byte", "protocol": {"content": "a", "num_rows": 8}}
    assert differing_scale(card, {**card, "protocol": {"content": "b", "num_rows": 8}}) == ["content"]
