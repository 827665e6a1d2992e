import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.arrays import Text
from dit_video.data.captions import encode_captions
from dit_video.data.inventory import Inventory
from dit_video.dit.condition import ClassCondition, Cond, Condition, EmbeddedText, TextCondition

TEXT = {"hidden_size": 32, "depth": 1, "num_heads": 2}
LABELS = jnp.arange(20_000) % 3
CAPTIONS = jnp.asarray(encode_captions(["up", "down", "七"], 8))[LABELS]


@pytest.mark.parametrize("drop_rate", [0.0, 0.1, 0.7])
@pytest.mark.parametrize(
    ("kind", "arguments", "cond"),
    [(ClassCondition, {"num_classes": 3}, LABELS), (TextCondition, TEXT, CAPTIONS)],
    ids=["class", "text"],
)
def test_clips_lose_their_condition_at_the_given_rate_and_otherwise_keep_it(
    kind: type[Condition], arguments: dict, cond: Cond, drop_rate: float
):
    condition = kind(drop_rate=drop_rate, **arguments)
    kept, null, found = (
        np.asarray(x).reshape(len(cond), -1)
        for x in (cond, condition.null(cond), condition.drop(jax.random.key(0), cond, condition.null(cond)))
    )
    dropped = (found == null).all(axis=1)
    # Five standard errors.
    assert dropped.mean() == pytest.approx(drop_rate, abs=5 * np.sqrt(drop_rate * (1 - drop_rate) / 20_000))
    np.testing.assert_array_equal(found[~dropped], kept[~dropped])


def test_a_clip_without_a_label_is_null_and_dropping_does_not_change_that():
    condition = ClassCondition(num_classes=3, drop_rate=0.5)
    known = condition.read({"label": jnp.array([-1, 0, 2])})
    np.testing.assert_array_equal(known, [3, 0, 2])
    np.testing.assert_array_equal(condition.null(known), [3, 3, 3])
    assert condition.drop(jax.random.key(0), known, condition.null(known))[0] == 3


def test_no_text_is_the_empty_caption():
    condition = TextCondition(**TEXT)
    known = condition.read({"caption": encode_captions(["up", "", "七"], 8)})
    np.testing.assert_array_equal(condition.null(known), encode_captions([""] * 3, 8))


def test_a_batch_must_have_what_the_condition_reads():
    labels, captions = np.zeros(2, np.int32), encode_captions(["a", "b"], 4)
    with pytest.raises(ValueError, match=r"has no 'label', .* it has caption: add one to config.data.signals"):
        ClassCondition(num_classes=3).read({"caption": captions})
    with pytest.raises(ValueError, match=r"has no 'caption', .* it has label: add one to config.data.signals"):
        TextCondition(**TEXT).read({"label": labels})


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (ClassCondition, {"num_classes": 0}, "num_classes=0"),
        (
            ClassCondition,
            {"num_classes": 3, "drop_rate": 1.0},
            r"ClassCondition.drop_rate=1.0: must be at least 0 and below 1",
        ),
        (TextCondition, TEXT | {"drop_rate": -0.1}, r"TextCondition.drop_rate=-0.1: must be at least 0 and below 1"),
        (TextCondition, TEXT | {"depth": 0}, "depth=0"),
        (TextCondition, TEXT | {"num_heads": 5}, "hidden_size=32: must be num_heads=5 times an even head size"),
    ],
)
def test_impossible_conditions_are_refused(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


def test_embedded_text_is_replaced_whole_by_the_embedding_of_nothing():
    condition = EmbeddedText(hidden_size=3, pooled_size=2, num_tokens=4, drop_rate=0.5)
    rng = np.random.default_rng(0)
    cond = condition.read({"text": Text(rng.normal(size=(64, 4, 3)), rng.integers(1, 5, 64), rng.normal(size=(64, 2)))})
    null = Text(rng.normal(size=(1, 4, 3)), np.array([1]), rng.normal(size=(1, 2)))
    found = condition.drop(jax.random.key(0), cond, null)
    dropped = [(a == b).reshape(64, -1).all(axis=1) for a, b in zip(found, null)]
    np.testing.assert_array_equal(dropped[0], dropped[2])
    assert 0 < dropped[0].sum() < 64
    for kept, left in zip(cond, found):
        np.testing.assert_array_equal(left[~dropped[0]], kept[~dropped[0]])


def test_embedded_text_of_another_shape_is_refused_and_nothing_cannot_be_made():
    condition = EmbeddedText(hidden_size=3, pooled_size=2, num_tokens=4)
    text = Text(np.zeros((2, 5, 3)), np.ones(2, np.int32), np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"\(5, 3, 2\), config.task.condition says \(4, 3, 2\)"):
        condition.read({"text": text})
    with pytest.raises(ValueError, match=r"has no 'text', .* it has none: add one to config.data.signals"):
        condition.read({})
    with pytest.raises(ValueError, match="has to be loaded"):
        condition.null(text)


@pytest.mark.parametrize(
    "condition",
    [
        ClassCondition(num_classes=3),
        TextCondition(**TEXT),
        EmbeddedText(hidden_size=3, pooled_size=2, num_tokens=4),
    ],
)
def test_random_values_of_what_is_read_can_be_read_and_have_a_meaning_each(condition):
    """What plans, proofs and exports call a network with where there are no data."""
    data = {"label": np.full(6, -1, np.int32), "caption": encode_captions([""] * 6, 8)}
    signals = condition.random(np.random.default_rng(0), condition.example(data, 6))
    leaves = jax.tree.leaves(condition.read(signals))
    assert len(leaves) == len(condition.inputs())
    assert all(len(leaf) == 6 and np.ptp(np.asarray(leaf, np.float32), axis=0).any() for leaf in leaves)
    condition.check(signals)


def test_a_label_beyond_the_classes_is_refused_by_both_numbers():
    with pytest.raises(ValueError, match="label 3: must be a number under num_classes=3"):
        ClassCondition(num_classes=3).check({"label": np.array([0, 3])})


def test_a_label_beyond_the_classes_is_never_read_as_no_label():
    labels = ClassCondition(num_classes=3).read({"label": np.array([-1, 0, 2, 3, 7], np.int32)})
    np.testing.assert_array_equal(labels, [3, 0, 2, 4, 4])


def inventory(num_classes: int, **facts) -> Inventory:
    names = tuple(f"c{i}" for i in range(num_classes))
    empty = {"labelled": None, "caption_bytes": None}
    return Inventory(num_records=2, num_usable=2, num_clips=2, class_names=names, **empty | facts)


@pytest.mark.parametrize(("number", "names"), [(4, r"c0, c1, c2, \.\.\."), (3, "c0, c1, c2")])
def test_more_classes_in_the_data_than_in_the_condition_are_refused(number, names):
    with pytest.raises(ValueError, match=rf"num_classes=2: the data have {number} classes \({names}\); set"):
        ClassCondition(num_classes=2).check_data(inventory(number))
    assert ClassCondition(num_classes=number).check_data(inventory(number)) == []
    ClassCondition(num_classes=3).check({"label": np.array([], np.int32)})


def test_clips_without_a_caption_or_class_are_counted():
    lacks = "1 of 2 training videos have no {}, and are learnt as without condition"
    captions = inventory(0, caption_bytes=np.array([0, 3]))
    embedded = EmbeddedText(hidden_size=3, pooled_size=2, num_tokens=4)
    assert TextCondition(**TEXT).check_data(captions) == embedded.check_data(captions) == [lacks.format("caption")]
    labels = inventory(1, labelled=np.array([True, False]))
    assert ClassCondition(num_classes=1).check_data(labels) == [lacks.format("class")]


def test_a_blank_embedding_of_nothing_is_one_text_of_the_right_shape():
    condition = EmbeddedText(hidden_size=3, pooled_size=2, num_tokens=4)
    tokens, length, pooled = condition.read({"text": condition.blank_null()})
    np.testing.assert_array_equal(tokens, np.zeros((1, 4, 3)))
    np.testing.assert_array_equal(length, [1])
    np.testing.assert_array_equal(pooled, np.zeros((1, 2)))
