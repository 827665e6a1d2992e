"""The laws of sharding, on the real train step: eight devices compute what one does, hold an eighth, send no more."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable

import jax
import numpy as np
import pytest
from toys import FitLines, line_batch, untrained

from dit_video.cli.verify_sharding import to_json
from dit_video.distributed.collectives import Traffic
from dit_video.distributed.sharding import RULES, MeshShape
from dit_video.dit.dit import DiTConfig
from dit_video.experiment import Experiment
from dit_video.tasks.autoencode import Autoencode
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.training.optimizer import AdamW
from dit_video.verify import sharding as verify
from dit_video.verify.sharding import MESHES, Comparison, compare_shardings

DEPTH = 2
QUICK, SEVERAL = tuple(MESHES[:2]), tuple(MESHES[4:])
ALL = [pytest.param(mesh, marks=[] if mesh in QUICK else [pytest.mark.slow]) for mesh in MESHES]
WITH_RING = MeshShape(data=1, context=8)
# What a step sends, by mesh: how often, by axes and kind. Read from the compiled text, and as few as the mathematics
# asks for: gradients are summed over `data`; parameters gathered over `fsdp` and `context`, their gradients summed;
# activations summed over `tensor` after attention and after the MLP; tokens exchanged over `context`. A tensor that is
# silently replicated or moved shows as another count. XLA decides them, so another version of it may count otherwise.
COLLECTIVES = {
    MESHES[0]: {("data", "all-reduce"): 3},
    MESHES[1]: {("fsdp", "all-gather"): 35, ("fsdp", "all-reduce"): 8},
    MESHES[2]: {("tensor", "all-gather"): 4, ("tensor", "all-reduce"): 12},
    MESHES[3]: {("context", "all-gather"): 29, ("context", "all-reduce"): 12, ("context", "all-to-all"): 8 * DEPTH},
}


def experiment_of(task, *, size: tuple[int, int]) -> Experiment:
    return dataclasses.replace(untrained(task, size=size), optimizer=AdamW(learning_rate=1e-3))


@pytest.fixture(scope="module")
def network(denoise) -> Denoise:
    """Of as many heads as devices, so that every mesh is possible."""
    config = DiTConfig(hidden_size=64, depth=DEPTH, num_heads=8, patch_size=(1, 1, 1))
    return dataclasses.replace(denoise, network=config)


@pytest.fixture(scope="module")
def split(network) -> Callable[[MeshShape], Comparison]:
    """The comparison of a mesh: the quick ones are made together, and all others."""

    @functools.cache
    def compared(meshes: tuple[MeshShape, ...]) -> dict[MeshShape, Comparison]:
        return {found.mesh: found for found in compare_shardings(experiment_of(network, size=(32, 32)), meshes)}

    return lambda mesh: compared(QUICK if mesh in QUICK else tuple(MESHES[2:]))[mesh]


@pytest.fixture(scope="module")
def ring(network) -> Comparison:
    """Of fewer heads than devices."""
    few = dataclasses.replace(network, network=dataclasses.replace(network.network, num_heads=2))
    return next(compare_shardings(experiment_of(few, size=(32, 32)), [WITH_RING]))


@pytest.fixture(scope="module")
def autoencoder(autoencode: Autoencode) -> dict[MeshShape, Comparison]:
    experiment = experiment_of(autoencode, size=(16, 16))
    return {
        comparison.mesh: comparison for comparison in compare_shardings(experiment, [MESHES[0], MESHES[1], MESHES[2]])
    }


def assert_equal(comparison: Comparison) -> None:
    assert comparison.refused is None
    assert comparison.loss <= 1e-6
    assert comparison.gradient[1] <= 1e-5, comparison.gradient[0]
    assert comparison.training <= 1e-5
    assert comparison.equal


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ALL, ids=str)
def test_loss_gradients_and_ten_steps_are_those_of_one_device(mesh, split):
    assert_equal(split(mesh))


@pytest.mark.slow
def test_so_they_are_where_heads_do_not_divide_and_a_ring_takes_over(ring):
    assert_equal(ring)
    counts = {(*c.axes, c.kind): c.count for c in ring.traffic.collectives}
    # Forward, keys and values go on seven times; backward, with their gradients, eight times and so come home.
    assert counts["context", "collective-permute"] == DEPTH * (2 * 7 + 4 * 8)


@pytest.mark.parametrize("mesh", MESHES[:2], ids=str)
@pytest.mark.slow
def test_so_they_are_for_an_autoencoder(mesh, autoencoder):
    assert_equal(autoencoder[mesh])


@pytest.mark.slow
def test_what_cannot_be_split_says_why(autoencoder):
    assert "config.mesh.tensor=8: an autoencoder is split along data and fsdp only" in autoencoder[MESHES[2]].refused


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [mesh for mesh in ALL if mesh.values[0] in COLLECTIVES], ids=str)
def test_a_step_sends_what_it_must_and_no_more(mesh, split):
    assert {(*c.axes, c.kind): c.count for c in split(mesh).traffic.collectives} == COLLECTIVES[mesh]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", SEVERAL, ids=str)
def test_where_axes_meet_little_moves_between_them(mesh, split):
    """Nothing but sums and gathers of what the axes of a rule split together: what is moved beside is a small part."""
    moved, total = 0, 0
    for collective in split(mesh).traffic.collectives:
        total += collective.inner_bytes
        if collective.kind == "collective-permute" or not any(set(collective.axes) <= set(a) for a in RULES.values()):
            moved += collective.inner_bytes
    assert moved < 0.06 * total


@pytest.mark.parametrize("mesh", ALL, ids=str)
def test_a_device_holds_its_part_of_the_state(mesh, split):
    comparison = split(mesh)
    ways = math.prod(getattr(mesh, axis) for axis in ("fsdp", "context"))
    # What "embed" does not split are biases and norms; "tensor" splits no embedding, no first and no last layer.
    assert comparison.whole / (ways * mesh.tensor) <= comparison.state < 1.13 * comparison.whole / ways
    if mesh.tensor > 1:
        assert comparison.state < 1.7 * comparison.whole / (ways * mesh.tensor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forgetful(FitLines):
    """Loses a thousandth of its gradient as soon as there are several devices."""

    def example(self, data, batch_size):
        return line_batch(0, size=batch_size)

    def loss(self, *arguments):
        value, metrics = super().loss(*arguments)
        several = jax.sharding.get_abstract_mesh().size > 1
        return value - 1e-3 * several * (value - jax.lax.stop_gradient(value)), metrics


def test_a_gradient_that_is_wrong_is_found():
    comparison = next(compare_shardings(experiment_of(Forgetful(), size=(32, 32)), [MESHES[0]], num_steps=1))
    assert comparison.loss <= 1e-6
    assert comparison.gradient[1] == pytest.approx(1e-3, rel=0.01)
    assert not comparison.equal


def test_what_is_no_number_is_not_equal():
    assert not Comparison(mesh=MeshShape(), loss=0.0, gradient=("a", math.nan), training=0.0).equal
    gradients = {"a": np.array([1.0]), "b": np.array([1.0])}
    broken = {"a": np.array([1.5]), "b": np.array([math.nan])}
    assert verify._largest_difference(gradients, broken)[0] == "b"


def test_what_was_compared_is_told_as_json():
    """Numbers where there are some; of what was refused the reason alone, since NaN is no JSON."""
    equal = Comparison(
        mesh=MeshShape(fsdp=8),
        loss=1e-7,
        gradient=("line.kernel", 1e-6),
        training=1e-5,
        state=10,
        whole=80,
        traffic=Traffic((), 0),
    )
    refused = Comparison(mesh=MeshShape(tensor=8), refused="8 heads at least")
    told = json.loads(json.dumps([to_json(one) for one in (equal, refused)], allow_nan=False))
    assert told[0]["equal"]
    assert told[0]["mesh"]["fsdp"] == 8
    assert told[0]["gradient"] == {"parameter": "line.kernel", "difference": 1e-6}
    assert told[0]["state_bytes"] == {"device": 10, "whole": 80}
    assert told[1] == {"mesh": dataclasses.asdict(refused.mesh), "refused": "8 heads at least"}
