import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.data.captions import encode_captions
from dit_video.dit.condition import ClassCondition, Condition, Given, TextCondition

TEXT = {"hidden_size": 32, "depth": 1, "num_heads": 2}
LABELS = jnp.arange(20_000) % 3
CAPTIONS = jnp.asarray(encode_captions(["up", "down", "七"], 8))[LABELS]


@pytest.mark.parametrize("drop_rate", [0.0, 0.1, 0.7])
@pytest.mark.parametrize(
    ("kind", "arguments", "given"),
    [(ClassCondition, {"num_classes": 3}, LABELS), (TextCondition, TEXT, CAPTIONS)],
    ids=["class", "text"],
)
def test_clips_lose_their_condition_at_the_given_rate_and_otherwise_keep_it(
    kind: type[Condition], arguments: dict, given: Given, drop_rate: float
):
    condition = kind(drop_rate=drop_rate, **arguments)
    kept, null, found = (
        np.asarray(x).reshape(len(given), -1)
        for x in (given, condition.null(given), condition.drop(jax.random.key(0), given))
    )
    dropped = (found == null).all(axis=1)
    # Five standard errors.
    assert dropped.mean() == pytest.approx(drop_rate, abs=5 * np.sqrt(drop_rate * (1 - drop_rate) / 20_000))
    np.testing.assert_array_equal(found[~dropped], kept[~dropped])


def test_a_clip_without_a_label_is_null_and_dropping_does_not_change_that():
    condition = ClassCondition(num_classes=3, drop_rate=0.5)
    known = condition.known(label=jnp.array([-1, 0, 2]))
    np.testing.assert_array_equal(known, [3, 0, 2])
    np.testing.assert_array_equal(condition.null(known), [3, 3, 3])
    assert condition.drop(jax.random.key(0), known)[0] == 3


def test_no_text_is_the_empty_caption():
    condition = TextCondition(**TEXT)
    known = condition.known(caption=encode_captions(["up", "", "七"], 8))
    np.testing.assert_array_equal(condition.null(known), encode_captions([""] * 3, 8))


def test_a_batch_must_have_what_the_condition_reads():
    labels, captions = np.zeros(2, np.int32), encode_captions(["a", "b"], 4)
    with pytest.raises(ValueError, match=r"Batch.label=None: .* needs labels"):
        ClassCondition(num_classes=3).known(label=None, caption=captions)
    with pytest.raises(ValueError, match=r"Batch.caption=None: .* config.data.caption_bytes"):
        TextCondition(**TEXT).known(label=labels, caption=None)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (ClassCondition, {"num_classes": 0}, "num_classes=0"),
        (ClassCondition, {"num_classes": 3, "drop_rate": 1.0}, r"ClassCondition.drop_rate=1.0: must be in"),
        (TextCondition, TEXT | {"drop_rate": -0.1}, r"TextCondition.drop_rate=-0.1: must be in"),
        (TextCondition, TEXT | {"depth": 0}, "depth=0"),
        (TextCondition, TEXT | {"num_heads": 5}, "hidden_size=32: must be num_heads=5 times an even head size"),
    ],
)
def test_impossible_conditions_are_refused(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)
