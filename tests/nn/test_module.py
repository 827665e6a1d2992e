import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_video.dit.condition import ClassCondition
from dit_video.dit.dit import DIT_XL, DiT
from dit_video.nn.conv import CausalConv3d
from dit_video.nn.linear import linear
from dit_video.nn.module import Precision, define, params_of


class Tower(nnx.Module):
    """A list, and stacked layers: every kind of name there is."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.convs = nnx.List([CausalConv3d(2, 3, (1, 1, 1), rngs=rngs) for _ in range(2)])
        self.layers = jax.vmap(lambda key: self._layer(nnx.Rngs(key)))(jax.random.split(rngs.params(), 2))

    def _layer(self, rngs: nnx.Rngs) -> nnx.Linear:
        return linear(4, 6, ("embed", "mlp"), rngs=rngs, dtype=jnp.dtype("float32"))


def build(key: jax.Array) -> Tower:
    return Tower(rngs=nnx.Rngs(key))


def test_a_network_bound_to_its_parameters_is_that_network():
    tower, definition = jax.jit(build)(jax.random.key(0)), define(build)
    params = params_of(tower)
    bound = definition.bind(params)
    again = params_of(bound)
    assert again.keys() == params.keys() == definition.shapes.keys()
    for name, value in params.items():
        assert again[name] is value
        assert (value.shape, value.dtype) == (definition.shapes[name].shape, definition.shapes[name].dtype)
    x = jax.random.normal(jax.random.key(1), (1, 1, 2, 2, 2))
    np.testing.assert_array_equal(bound.convs[1](x)[0], tower.convs[1](x)[0])
    np.testing.assert_array_equal(bound.layers.kernel[...], tower.layers.kernel[...])


def test_names_say_where_a_parameter_is_and_axes_what_its_dimensions_are():
    definition = define(build)
    assert definition.axes["convs.1.kernel"] == (None, None, None, "channels_in", "channels_out")
    assert definition.axes["layers.kernel"] == ("layers", "embed", "mlp")
    assert definition.axes["layers.bias"] == ("layers", "mlp")
    assert definition.num_params == 2 * (2 * 3 + 3) + 2 * (4 * 6 + 6)


def test_missing_and_surplus_parameters_are_named():
    definition = define(build)
    params = {name: jnp.zeros(shape.shape) for name, shape in definition.shapes.items()}
    params["layers.kernal"] = params.pop("layers.kernel")
    with pytest.raises(ValueError, match=r"missing=\['layers.kernel'\] surplus=\['layers.kernal'\]"):
        definition.bind(params)


def test_defining_a_large_network_allocates_nothing():
    before = {id(array) for array in jax.live_arrays()}
    definition = define(lambda key: DiT(DIT_XL, 4, ClassCondition(num_classes=1000), rngs=nnx.Rngs(key)))
    assert definition.num_params > 600e6
    assert not [array for array in jax.live_arrays() if id(array) not in before]


@pytest.mark.parametrize(("precision", "dtype"), [("float32", jnp.float32), ("bfloat16", jnp.bfloat16)])
def test_precisions_name_dtypes(precision, dtype):
    assert Precision(precision).dtype == dtype
