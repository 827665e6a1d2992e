"""Laws of the language model: three factorisations of one network, and what they write."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.data.batch import Batch
from dit_video.data.dataset import Data
from dit_video.data.record import TokenRow
from dit_video.data.sources import TextSet
from dit_video.data.text_tokens import OPEN
from dit_video.data.tokenizers import Characters
from dit_video.diffusion.unmasking import RandomOrder, Remasking, Spread, Unmasking
from dit_video.dit.text_transformer import TextTransformerConfig
from dit_video.nn.attention_mask import BlockCausal
from dit_video.nn.module import define
from dit_video.tasks.factorization import Autoregressive, Blocks, Masked
from dit_video.tasks.task import SamplingOptions
from dit_video.tasks.text import LanguageModel

LETTERS, N = Characters("abcdefgh"), 8
SOURCE = TextSet(directory="nowhere", length=N, align=4, tokenizer=LETTERS)


def task(factorization, **options) -> LanguageModel:
    network = TextTransformerConfig(hidden_size=16, depth=2, num_heads=2)
    return LanguageModel(network=network, tokenizer=LETTERS, factorization=factorization, **options)


@pytest.fixture(scope="module")
def model():
    definition = define(task(Masked()).init)
    rng = np.random.default_rng(0)
    return definition.bind(
        {n: jnp.asarray(0.3 * rng.standard_normal(s.shape, np.float32)) for n, s in definition.shapes.items()}
    )


@pytest.fixture(scope="module")
def row():
    rng = np.random.default_rng(1)
    documents = np.array([[1] * 8, [1, 1, 1, 0, 2, 2, 0, 0]], np.int32)
    return TokenRow(rng.integers(0, 8, (2, N)).astype(np.int32), documents)


KEYS = jax.random.split(jax.random.key(3), 2)


def nats(factorization, model, row, num_draws=1):
    return np.asarray(jax.jit(lambda: factorization.nats(model, row, KEYS, num_draws))())


def test_all_factorisations_have_the_same_parameters():
    shapes = [define(task(kind).init).shapes for kind in (Masked(), Blocks(size=4), Autoregressive())]
    assert shapes[0] == shapes[1] == shapes[2]


def test_blocks_of_one_token_are_the_chain_rule(model):
    """Loss and likelihood are the sum of -log p(token | tokens before it), asked one at a time, to 1e-5."""
    row = TokenRow(np.arange(N, dtype=np.int32)[None], np.ones((1, N), np.int32))
    chain, tokens = 0.0, jnp.asarray(row.tokens)
    for i in range(N):
        asked = tokens.at[:, i:].set(LETTERS.size)
        chain -= jax.nn.log_softmax(model(asked, BlockCausal(1)))[0, i, tokens[0, i]]
    loss, _ = Blocks(size=1).loss(model, row, jax.random.key(0))
    exact = nats(Blocks(size=1), model, TokenRow(*(np.repeat(part, 2, 0) for part in row)))
    np.testing.assert_allclose([loss * N, *exact], [chain] * 3, rtol=1e-5)


def test_one_block_for_the_whole_row_is_plain(model, row):
    np.testing.assert_allclose(nats(Blocks(size=N), model, row, 3), nats(Masked(), model, row, 3), rtol=1e-5)


def test_documents_of_a_row_and_padding_do_not_count_for_each_other(model, row):
    """What the second document and the padding say changes nothing of the first's likelihood."""
    first = row.documents == 1
    other = TokenRow(np.where(first, row.tokens, (row.tokens + 1) % 8), row.documents)
    for kind in (Autoregressive(), Blocks(size=1)):
        kind_nats = [nats(kind, model, TokenRow(each.tokens, first.astype(np.int32))) for each in (row, other)]
        np.testing.assert_allclose(*kind_nats, rtol=1e-5)
        whole = nats(kind, model, row)
        parts = [
            nats(kind, model, TokenRow(row.tokens, np.where(row.documents == d, 1, 0).astype(np.int32))) for d in (1, 2)
        ]
        np.testing.assert_allclose(whole[1], parts[0][1] + parts[1][1], rtol=1e-4)


def prompt(*texts: str) -> Batch:
    """Texts in which ? is open."""
    made = np.array([[OPEN if c == "?" else LETTERS.characters.index(c) for c in text] for text in texts], np.int32)
    return Batch(signals={"prompt": TokenRow(made, np.ones(made.shape, np.int32))})


def written(kind, model, batch, length=N, **options) -> np.ndarray:
    made = task(kind, **options)
    return np.asarray(jax.jit(lambda: made.generate(model, None, batch, KEYS, (length, 1, 1)))())


@pytest.mark.parametrize("kind", [Masked(), Blocks(size=4), Autoregressive()])
def test_a_prompt_stays_the_rest_is_written_and_the_text_is_of_any_length(kind, model):
    made = written(kind, model, prompt("abc?????", "ab??????"), length=11)
    assert made.shape == (2, 11)
    assert ((made >= 0) & (made < 8)).all()
    assert made[0, :3].tolist() == [0, 1, 2]
    assert made[1, :2].tolist() == [0, 1]


@pytest.mark.parametrize("kind", [Masked(), Blocks(size=4)])
def test_text_is_filled_in_around_what_is_known(kind, model):
    made = written(kind, model, prompt("?b?d???h", "????????"), sampler=Unmasking(order=Spread(tokens=3)))
    assert made[0, [1, 3, 7]].tolist() == [1, 3, 7]
    assert (made < 8).all()


def test_only_what_stands_first_is_a_prompt_of_an_autoregressive_model():
    with pytest.raises(ValueError, match="left to right"):
        task(Autoregressive()).check_prompt(prompt("a?c?????").signals)
    task(Autoregressive()).check_prompt(prompt("ab??????").signals)


def test_a_greedy_autoregressive_text_is_that_without_a_cache(model):
    made = written(Autoregressive(), model, prompt("ab??????", "c???????"), sampler=Unmasking(temperature=0.0))
    for tokens, num_known in zip(made, (2, 1)):
        inputs = jnp.asarray([[8, *tokens[:-1]]])
        likeliest = jnp.argmax(model(inputs, BlockCausal(1))[0], -1)
        assert (tokens[num_known:] == likeliest[num_known:]).all()


def test_a_greedy_block_text_is_that_without_a_cache(model):
    """All of a block at once, so that the tokens of a block are its likeliest given the blocks before."""
    sampler = Unmasking(order=RandomOrder(tokens=4), temperature=0.0)
    made = written(Blocks(size=4), model, prompt("????????", "????????"), sampler=sampler)
    for first in (0, 4):
        asked = jnp.asarray(made).at[:, first:].set(8)
        likeliest = jnp.argmax(model(asked, BlockCausal(4)), -1)[:, first : first + 4]
        np.testing.assert_array_equal(made[:, first : first + 4], likeliest)


@pytest.mark.parametrize(("kind", "passes"), [(Masked(), 4), (Blocks(size=4), 4), (Autoregressive(), 8)])
def test_passes_are_those_that_the_order_asks_for_and_the_text_refines(kind, passes, model):
    """Of 8 tokens, two a pass."""
    made = task(kind, sampler=Unmasking(order=RandomOrder(tokens=2)))
    batch = prompt("????????", "????????")
    steps = np.asarray(jax.jit(lambda: made.refine(model, None, batch, KEYS, (N, 1, 1)))())
    left = (steps == 8).sum(-1)
    assert left[0].tolist()[: passes + 1] == list(range(8, -1, -8 // passes))
    np.testing.assert_array_equal(steps[:, -1], jax.jit(lambda: made.generate(model, None, batch, KEYS, (N, 1, 1)))())


def test_what_is_shown_of_a_text():
    medium = task(Masked()).functions()["refine"].medium
    assert medium.of_rows(np.array([[0, 1, 8, 8, 2, OPEN]]), 1, 1.0).lines() == ("ab▒▒c",)


def test_fields_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"LanguageModel\.sampler"):
        task(Blocks(size=4), sampler=Remasking())
    data = Data.of_text(SOURCE, batch_size=2)
    task(Blocks(size=4)).check(data, None)
    with pytest.raises(ValueError, match=r"factorization\.size=8"):
        task(Blocks(size=8)).check(data, None)
    with pytest.raises(ValueError, match=r"config\.task\.tokenizer"):
        dataclasses.replace(task(Masked()), tokenizer=Characters("xy")).check(data, None)


def test_another_order_is_asked_for_on_the_command_line():
    changed = task(Masked()).with_sampling(SamplingOptions(sampler=Spread))
    assert changed.sampler == Unmasking(order=Spread())
    with pytest.raises(ValueError, match="num_steps"):
        changed.with_sampling(SamplingOptions(num_steps=3))
