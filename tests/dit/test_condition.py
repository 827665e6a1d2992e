import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.dit.condition import ClassCondition

LABELS = jnp.arange(20_000) % 3


@pytest.mark.parametrize("drop_rate", [0.0, 0.1, 0.7])
def test_labels_are_dropped_at_the_given_rate_and_otherwise_kept(drop_rate):
    condition = ClassCondition(num_classes=3, drop_rate=drop_rate)
    dropped = condition.drop(jax.random.key(0), LABELS)
    null = dropped == 3
    # Five standard errors.
    assert float(null.mean()) == pytest.approx(drop_rate, abs=5 * np.sqrt(drop_rate * (1 - drop_rate) / 20_000))
    np.testing.assert_array_equal(dropped[~null], LABELS[~null])


def test_a_clip_without_a_label_is_null_and_dropping_does_not_change_that():
    condition = ClassCondition(num_classes=3, drop_rate=0.5)
    known = condition.known(jnp.array([-1, 0, 2]))
    np.testing.assert_array_equal(known, [3, 0, 2])
    np.testing.assert_array_equal(condition.null(known), [3, 3, 3])
    assert condition.drop(jax.random.key(0), known)[0] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"num_classes": 0}, "num_classes=0"), ({"num_classes": 3, "drop_rate": 1.0}, r"drop_rate=1.0: must be in")],
)
def test_impossible_conditions_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClassCondition(**arguments)
