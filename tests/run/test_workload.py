import dataclasses

import jax
import jax.numpy as jnp

from dit_video import experiment as experiments
from dit_video.run import workload
from dit_video.training.flops import count_dependent_flops, count_flops


def test_a_frozen_codec_costs_a_step_its_forward_pass_alone():
    cached = experiments.load("experiments/quickstart.py:dit")
    online = dataclasses.replace(cached, data=dataclasses.replace(cached.data, cache=None))
    frozen, video = workload.abstract_frozen(online.task), workload.abstract_batch(online).video
    encoding = count_flops(lambda frozen, video: frozen.codec.moments(video), frozen, video)
    assert workload.step_flops(online) - workload.step_flops(cached) == encoding > 0


def test_what_depends_on_the_first_argument_is_found_in_functions_that_are_called():
    @jax.jit
    def inner(a, b, x):
        return a @ x, b @ x, x + a

    def function(a, b, x):
        found, other, on = inner(a, b, x)
        return found + other @ on

    square = jnp.ones((4, 4))
    assert count_flops(function, square, square, square) == 3 * 2 * 4**3
    # b @ x does not depend on a; its product with something that does, does.
    assert count_dependent_flops(function, square, square, square) == 2 * 2 * 4**3
