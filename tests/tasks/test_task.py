import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import FitLines, line_batch, small_mesh

from dit_video.nn.module import define, params_of
from dit_video.tasks.keys import clip_keys, purpose_key
from dit_video.tasks.subject import Subject
from dit_video.tasks.task import Task


def numbers(key: jax.Array) -> bytes:
    return np.asarray(jax.random.key_data(key)).tobytes()


def test_every_purpose_step_and_seed_has_a_key_of_its_own():
    keys = [
        numbers(purpose_key(seed, purpose, step))
        for seed, purpose, step in itertools.product((0, 1), ("init", "train", "held-out error"), (0, 1, 2))
    ]
    assert len(set(keys)) == len(keys)


def test_a_key_is_the_same_in_a_compiled_program():
    """The step counts on the device, evaluation on the host."""
    inside = jax.jit(lambda seed, step: purpose_key(seed, "train", step))(3, jnp.int32(7))
    assert numbers(inside) == numbers(purpose_key(3, "train", 7))


def test_a_clip_has_its_key_whatever_its_batch():
    all_at_once = clip_keys(5, range(6))
    for first, count in ((0, 2), (2, 3), (5, 1)):
        assert numbers(clip_keys(5, range(first, first + count))) == numbers(all_at_once[first : first + count])
    assert len({numbers(key) for key in all_at_once}) == 6
    assert numbers(clip_keys(6, [0])) != numbers(all_at_once[:1])


def test_tasks_are_of_one_type(denoise, autoencode):
    for task in (FitLines(), denoise, autoencode):
        assert isinstance(task, Task)
    assert not isinstance(denoise.network, Task)


@pytest.mark.parametrize("mesh", [small_mesh(), small_mesh(8)], ids=["one device", "eight"])
def test_a_subject_judges_the_weights_it_holds(mesh):
    task, batch = FitLines(), line_batch(0)
    definition = define(task.init)
    weights = [params_of(task.init(jax.random.key(seed))) for seed in (0, 1)]
    subject = Subject(task, definition, None, mesh, {"run": "toys"})
    errors = []
    for step, params in enumerate(weights):
        held = subject.with_weights(params, step=step, ema=step == 0)
        assert (held, held.step, held.ema) == (subject, step, step == 0)
        found = held("validate", batch, clip_keys(0, range(8)))["error"]
        x, y = np.split(batch.moments, 2, axis=-1)
        model = definition.bind(params)
        expected = np.square(np.asarray(model(jnp.asarray(x))) - y).mean(axis=(1, 2, 3, 4))
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        errors.append(found)
    assert not np.allclose(*errors)


def test_a_subject_makes_host_clips_in_the_order_of_the_batch():
    task = FitLines()
    definition = define(task.init)
    subject = Subject(task, definition, None, small_mesh(8), {})
    subject.with_weights(params_of(task.init(jax.random.key(0))), step=0, ema=True)
    made = subject("generate", line_batch(0), clip_keys(0, range(8)), (3, 4, 5))
    assert isinstance(made, np.ndarray)
    with pytest.raises(ValueError, match="has no function 'rollout'; it has validate, generate, reconstruct"):
        subject("rollout", line_batch(0))
    assert made.shape == (8, 3, 4, 5, 3)
    np.testing.assert_array_equal(made[:, 0, 0, 0, 0], np.arange(8))
