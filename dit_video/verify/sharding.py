"""Verify sharding on a user's experiment: loss and gradients on every mesh equal those on one device.

The real train step, on one device and on eight in every way the mesh can be, from the same weights and the same batch:
loss, the gradient of each parameter, and the losses of several steps of training. Weights, batch and codec are random:
neither data nor a trained codec is needed. It is computed in float32, whose rounding leaves an error no room to hide.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dit_video.config.user_file import ExperimentError
from dit_video.data.batch import Batch
from dit_video.distributed.collectives import Traffic, read_traffic
from dit_video.distributed.sharding import MeshShape, Uneven, make_mesh, place_whole, shard_frozen
from dit_video.experiment import Experiment
from dit_video.run import workload
from dit_video.run.checks import check_fields, check_mesh
from dit_video.run.open_run import program_of
from dit_video.training.step import Program, TrainState

NUM_DEVICES = 8
# Every axis alone, and mixtures in which each axis meets every other.
MESHES = (
    MeshShape(data=8),
    MeshShape(data=1, fsdp=8),
    MeshShape(data=1, tensor=8),
    MeshShape(data=1, context=8),
    MeshShape(data=2, fsdp=2, tensor=2),
    MeshShape(data=2, fsdp=2, context=2),
    MeshShape(data=1, fsdp=2, context=2, tensor=2),
)
# Of float32 sums in another order: gradients relative to their norm, losses to themselves. Steps of training carry
# differences on, and optimizers that divide by the size of a gradient enlarge those of numbers near zero.
GRADIENT_TOLERANCE = 1e-4
LOSS_TOLERANCE = 1e-5
TRAINING_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Comparison of a mesh with one device.

    Attributes:
        refused: why the experiment cannot be split so; nothing else is known then.
        loss: relative difference of the loss.
        gradient: largest difference of a parameter's gradient, relative to its norm, and whose it is.
        training: largest relative difference of the losses of `num_steps` steps.
        state: bytes of parameters, average and optimizer on the device that holds most.
        whole: bytes of all of it.
        traffic: what the compiled step sends.
    """

    mesh: MeshShape
    refused: str | None = None
    loss: float = math.nan
    gradient: tuple[str, float] = ("", math.nan)
    training: float = math.nan
    state: int = 0
    whole: int = 0
    traffic: Traffic | None = None

    @property
    def equal(self) -> bool:
        """Whether all differences are within the tolerances; NaN is not."""
        return (
            self.loss <= LOSS_TOLERANCE
            and self.gradient[1] <= GRADIENT_TOLERANCE
            and self.training <= TRAINING_TOLERANCE
        )


@dataclasses.dataclass(frozen=True)
class _Trained:
    """Results of training on a mesh from the random weights, on the host."""

    loss: float
    gradient: dict[str, np.ndarray]
    losses: np.ndarray


def compare_shardings(
    experiment: Experiment, meshes: Iterable[MeshShape] = MESHES, *, num_steps: int = 10
) -> Iterator[Comparison]:
    """Compares each of `meshes`, over the first devices of this process, with one device."""
    experiment = _in_float32(experiment)
    batch = random_batch(experiment)
    one = make_mesh(MeshShape(data=1), jax.devices()[:1])
    program = program_of(experiment, one)
    state = _random_state(program)
    frozen = jax.device_get(jax.jit(experiment.task.blank)(jax.random.key(0)))
    reference, _ = _train(program, state, frozen, batch, one, num_steps)
    for shape in meshes:
        mesh = make_mesh(shape, jax.devices()[: math.prod(dataclasses.astuple(shape))])
        try:
            check_fields(experiment, mesh)
            check_mesh(experiment, mesh)
            program = program_of(experiment, mesh)
            split, traffic = _train(program, state, frozen, batch, mesh, num_steps)
        except (Uneven, ExperimentError) as error:
            yield Comparison(mesh=shape, refused=str(error))
            continue
        yield Comparison(
            mesh=shape,
            loss=abs(split.loss / reference.loss - 1),
            gradient=_largest_difference(reference.gradient, split.gradient),
            training=float(np.abs(split.losses / reference.losses - 1).max()),
            state=sum(_bytes(leaf.sharding.shard_shape(leaf.shape), leaf) for leaf in jax.tree.leaves(program.shapes)),
            whole=sum(_bytes(leaf.shape, leaf) for leaf in jax.tree.leaves(program.shapes)),
            traffic=traffic,
        )


def random_batch(experiment: Experiment) -> Batch:
    """Random batch in the shapes of a training batch, with as few rows as every mesh can split."""
    ways = NUM_DEVICES * experiment.num_microbatches
    batch = jax.tree.map(
        lambda leaf: np.zeros((ways, *leaf.shape[1:]), leaf.dtype), workload.abstract_batch(experiment)
    )
    return experiment.task.random(np.random.default_rng(0), batch)


def _in_float32(experiment: Experiment) -> Experiment:
    return dataclasses.replace(
        experiment,
        task=experiment.task.in_float32(),
        data=dataclasses.replace(experiment.data, batch_size=NUM_DEVICES * experiment.num_microbatches, shapes=()),
    )


def _random_state(program: Program) -> TrainState:
    """Initial weights plus noise, on the host: without it zero-initialised layers block gradients."""
    rng, fresh = np.random.default_rng(0), jax.device_get(program.init(0))
    params = {name: p + 0.02 * rng.standard_normal(p.shape, np.float32) for name, p in sorted(fresh.params.items())}
    return fresh._replace(params=params, ema=None if fresh.ema is None else params)


def _placed(frozen: Any, mesh: Mesh) -> Any:
    return None if frozen is None else jax.device_put(frozen, shard_frozen(frozen, mesh))


def _train(
    program: Program, state: TrainState, frozen: Any, batch: Batch, mesh: Mesh, num_steps: int
) -> tuple[_Trained, Traffic]:
    state = jax.device_put(state, jax.tree.map(lambda shape: shape.sharding, program.shapes))
    placed, frozen = place_whole(batch, mesh), _placed(frozen, mesh)
    gradient, metrics = jax.device_get(program.gradient(state, frozen, placed, 0))
    step = program.lower(_abstract(frozen), _abstract(placed)).compile()
    text = step.as_text()
    assert text is not None, "XLA's CPU compiler provides the program's text"
    losses = []
    for _ in range(num_steps):
        state, stepped = step(state, frozen, placed, 0)
        losses.append(stepped["loss"])
    trained = _Trained(float(metrics["loss"]), gradient, np.asarray(jax.device_get(losses)))
    return trained, read_traffic(text, mesh.shape, [0] * mesh.size)


def _largest_difference(reference: dict[str, np.ndarray], actual: dict[str, np.ndarray]) -> tuple[str, float]:
    """The parameter whose gradient differs most, relative to its norm, or to the total norm where that is rounding."""
    floor = 1e-6 * math.sqrt(sum(float(np.square(g).sum()) for g in reference.values()))
    errors = {n: float(np.linalg.norm(actual[n] - g) / max(np.linalg.norm(g), floor)) for n, g in reference.items()}
    # A gradient that is no number is the worst of all, and max would step over it.
    return max(errors.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])


def _abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _bytes(shape: tuple[int, ...], leaf: jax.ShapeDtypeStruct) -> int:
    return math.prod(shape) * leaf.dtype.itemsize
