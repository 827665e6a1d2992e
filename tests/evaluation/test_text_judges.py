"""Laws of the judges of text: an n-gram model is a probability, finds the source's entropy, and guards have teeth."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from toys import small_mesh

from dit_video.data.tokenizers import Characters
from dit_video.dit.text_transformer import TextTransformerConfig
from dit_video.evaluation.card import differing_scale
from dit_video.evaluation.ngram import KneserNey
from dit_video.evaluation.text import _ratio, failed_guards, variety
from dit_video.evaluation.text_judge import TrainedJudge, check_same_tokens, judged_rows
from dit_video.nn.module import define
from dit_video.tasks.factorization import Autoregressive, Masked
from dit_video.tasks.subject import Subject
from dit_video.tasks.text import LanguageModel

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


def subject(characters: str, factorization, seed: int = 0) -> Subject:
    task = LanguageModel(
        network=TextTransformerConfig(hidden_size=8, depth=1, num_heads=1),
        tokenizer=Characters(characters),
        factorization=factorization,
    )
    definition = define(task.init)
    made = Subject(task, definition, None, small_mesh(), task.describe())
    rng = np.random.default_rng(seed)
    params = {n: jnp.asarray(0.5 * rng.standard_normal(s.shape, np.float32)) for n, s in definition.shapes.items()}
    return made.with_weights(params, step=1, ema=False)


def test_a_judge_gives_probabilities_however_rows_are_batched():
    judge = subject("ab", Autoregressive())
    texts = np.array(list(itertools.product(range(2), repeat=4)))
    bits, num_bytes = judged_rows(judge, texts, 5)  # the last batch is not full
    assert (2.0**-bits).sum() == pytest.approx(1, abs=1e-5)
    assert (num_bytes == 4).all()


def test_a_judge_is_autoregressive_has_its_weights_and_reads_the_same_tokens():
    judge, texts = subject("abcdef", Autoregressive()), rows(4, 5, 1)
    named = TrainedJudge(run="judge")
    opened, digest = named.open(lambda folder: judge)
    assert opened is judge
    with pytest.raises(ValueError, match="weights in judge are now"):
        TrainedJudge(run="judge", digest=digest).open(lambda folder: subject("abcdef", Autoregressive(), seed=1))
    with pytest.raises(ValueError, match="no run of Autoregressive"):
        named.open(lambda folder: subject("abcdef", Masked()))
    check_same_tokens(subject("abcdef", Masked()), judge, texts, "judge")
    for others in ("abcdfe", "abcde"):
        with pytest.raises(ValueError, match="another tokenizer"):
            check_same_tokens(subject(others, Masked()), judge, texts, "judge")
    with pytest.raises(ValueError, match=r"judge.run=nowhere: is no folder"):
        TrainedJudge(run="nowhere").check()


def test_cards_of_other_rows_are_not_compared():
    card = {"metric": "bits per byte", "protocol": {"content": "a", "num_rows": 8}}
    assert differing_scale(card, {**card, "protocol": {"content": "b", "num_rows": 8}}) == ["content"]
