"""TrainState and the jitted train step of every task, with gradient accumulation, EMA and sharded state."""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Int

from dit_video.data.batch import Batch
from dit_video.distributed.sharding import replicated, shard_params
from dit_video.nn.module import Definition, Params, define, params_of
from dit_video.tasks.keys import purpose_key
from dit_video.tasks.task import Metrics, Task
from dit_video.training.optimizer import EMA, Optimizer, num_updates

CompilerOptions = Mapping[str, bool | int | str]


class TrainState(NamedTuple):
    """Training state: step, parameters, their exponential moving average and optimizer state, as plain arrays.

    `ema` is None where none is kept.
    """

    step: Int[Array, ""]
    params: Params
    ema: Params | None
    opt_state: optax.OptState

    @property
    def evaluated(self) -> Params:
        """The weights that are evaluated: averaged, where there is an average."""
        return self.params if self.ema is None else self.ema


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A task's compiled functions on a mesh: initialisation of the state, train step and gradient.

    Attributes:
        definition: the network without its numbers.
        init: seed -> state, each array created where it will live.
        step: (state, frozen, batch, seed) -> (state, metrics); the old state is donated.
        gradient: (state, frozen, batch, seed) -> (gradient, metrics): what the step's update is made of.
        shapes: shape, dtype and sharding of every array of the state, to restore a checkpoint into.
        compile: (frozen, batches, or shapes of such with shardings) -> executables of the step, one for each, compiled
            several at once and kept: `step` compiles nothing for batches of these shapes.
        learning_rate: state -> learning rate of the update that led to it, or of the first one.
        lower: (frozen, batch), both of shapes with shardings -> the step, ready to be compiled for the devices of the
            mesh, which need not be there. What it does not read stays an argument, since it stays in memory too.
        mesh: the devices that all of these are for.
    """

    definition: Definition
    init: Callable[[int], TrainState]
    step: Callable[[TrainState, Any, Batch, int], tuple[TrainState, Metrics]]
    gradient: Callable[[TrainState, Any, Batch, int], tuple[Params, Metrics]]
    shapes: TrainState
    compile: Callable[[Any, Sequence[Batch]], list[jax.stages.Compiled]]
    learning_rate: Callable[[TrainState], float]
    lower: Callable[[Any, Batch], jax.stages.Lowered]
    mesh: Mesh


def make_program(
    task: Task,
    optimizer: Optimizer,
    ema: EMA | None,
    *,
    num_steps: int,
    num_microbatches: int,
    mesh: Mesh,
    compiler_options: CompilerOptions | None = None,
    skip_not_finite: bool = False,
) -> Program:
    """Builds init, train step and gradient of `task` for a mesh; nothing is compiled or computed yet.

    Args:
        ema: None keeps no average.
        num_steps: length of the run, for learning-rate decay.
        num_microbatches: the batch is cut into this many parts whose gradients are averaged before the one update.
        compiler_options: XLA's, for the step.
        skip_not_finite: a step whose loss or gradient norm is not finite changes nothing but the number of the step;
            the metric `skipped` is then 1, else 0.
    """
    definition = define(task.init)
    rule, rates = optimizer.build(num_steps, definition.axes), optimizer.rates(num_steps)
    shapes = _shard(
        jax.eval_shape(lambda: _fresh(definition.shapes, rule, ema)),
        shard_params(definition.axes, definition.shapes, mesh),
        mesh,
    )
    shardings = jax.tree.map(lambda s: s.sharding, shapes)

    def init(seed: int) -> TrainState:
        build = lambda s: _start(params_of(task.init(purpose_key(s, "init"))), rule, ema)  # noqa: E731
        with jax.set_mesh(mesh):
            return jax.jit(build, out_shardings=shardings)(seed)

    def loss(params: Params, frozen, batch: Batch, rng, step) -> tuple[Array, Metrics]:
        value, metrics = task.loss(definition.bind(params), frozen, batch, rng, step)
        return value, {"loss": value} | metrics

    def gradient(state: TrainState, frozen, batch: Batch, seed) -> tuple[Params, Metrics]:
        rng = purpose_key(seed, "train", state.step)
        return _mean_gradient(loss, num_microbatches, state, frozen, batch, rng)

    def step(state: TrainState, frozen, batch: Batch, seed) -> tuple[TrainState, Metrics]:
        grads, metrics = gradient(state, frozen, batch, seed)
        updates, opt_state = rule.update(grads, state.opt_state, state.params)
        # Optax says only that it is a tree; it is one like the params it was given.
        params = cast(Params, optax.apply_updates(state.params, updates))
        averaged = None if ema is None or state.ema is None else ema.update(state.ema, params, state.step)
        metrics |= {"grad_norm": optax.tree.norm(grads)}
        new = TrainState(state.step + 1, params, averaged, opt_state)
        if skip_not_finite:
            finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
            updated = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, state)
            new = updated._replace(step=new.step)
            metrics |= {"skipped": 1.0 - finite.astype(jnp.float32)}
        return new, metrics

    out_shardings = (shardings, replicated(mesh))
    jit_step = functools.partial(
        jax.jit, step, donate_argnums=0, out_shardings=out_shardings, compiler_options=compiler_options
    )
    jitted = jit_step()
    jitted_gradient = jax.jit(gradient, out_shardings=(shardings.params, replicated(mesh)))

    executables: dict[Any, jax.stages.Compiled] = {}

    def run_step(state: TrainState, frozen, batch: Batch, seed: int) -> tuple[TrainState, Metrics]:
        with jax.set_mesh(mesh):
            return executables.get(_shapes_of(batch), jitted)(state, frozen, batch, seed)

    def run_gradient(state: TrainState, frozen, batch: Batch, seed: int) -> tuple[Params, Metrics]:
        with jax.set_mesh(mesh):
            return jitted_gradient(state, frozen, batch, seed)

    def compile_all(frozen, batches: Sequence[Batch]) -> list[jax.stages.Compiled]:
        missing = {_shapes_of(batch): batch for batch in batches if _shapes_of(batch) not in executables}
        with jax.set_mesh(mesh):
            lowered = [jitted.lower(shapes, frozen, batch, 0) for batch in missing.values()]
        # XLA compiles without Python's lock.
        with concurrent.futures.ThreadPoolExecutor() as threads:
            executables.update(zip(missing, threads.map(lambda program: program.compile(), lowered)))
        return [executables[_shapes_of(batch)] for batch in batches]

    def learning_rate(state: TrainState) -> float:
        return float(np.asarray(rates(max(0, num_updates(state.opt_state) - 1))))

    def lower(frozen, batch: Batch) -> jax.stages.Lowered:
        with jax.set_mesh(mesh):
            return jit_step(keep_unused=True).lower(shapes, frozen, batch, 0)

    return Program(definition, init, run_step, run_gradient, shapes, compile_all, learning_rate, lower, mesh)


def _shapes_of(batch: Batch) -> Any:
    """What an executable is found by."""
    leaves, tree = jax.tree.flatten(batch)
    return tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def _start(params: Params, rule: optax.GradientTransformation, ema: EMA | None) -> TrainState:
    averaged = None if ema is None else jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, averaged, rule.init(params))


def _fresh(
    shapes: Mapping[str, jax.ShapeDtypeStruct], rule: optax.GradientTransformation, ema: EMA | None
) -> TrainState:
    return _start({n: jnp.zeros(s.shape, s.dtype) for n, s in shapes.items()}, rule, ema)


def _mean_gradient(loss, num_microbatches: int, state: TrainState, frozen, batch: Batch, rng):
    """Gradient accumulation: mean gradient and metrics over microbatches, scanned so that memory is that of one."""
    grad = jax.grad(loss, has_aux=True)
    if num_microbatches == 1:
        return grad(state.params, frozen, batch, rng, state.step)
    # Part i takes every num_microbatches-th row: each device then cuts its own rows, and none move.
    parts = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, num_microbatches, *x.shape[1:]), 0, 1), batch)

    def body(total, part):
        index, rows = part
        out = grad(state.params, frozen, rows, jax.random.fold_in(rng, index), state.step)
        return jax.tree.map(jnp.add, total, out), None

    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(grad, state.params, frozen, first, rng, state.step)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(body, zeros, (jnp.arange(num_microbatches), parts))
    return jax.tree.map(lambda x: x / num_microbatches, total)


def _shard(state: TrainState, params: dict[str, NamedSharding], mesh: Mesh) -> TrainState:
    """Sharding of every array of the abstract training state.

    Whatever stands under a parameter's name and has its shape lives where the parameter lives: the average, moments.
    Without explicit shardings they would silently be replicated, because inside jit zeros_like forgets shardings.
    """

    def sharding(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey) and key.key in params]
        same = names and leaf.shape == state.params[names[-1]].shape
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=params[names[-1]] if same else replicated(mesh))

    return jax.tree_util.tree_map_with_path(sharding, state)
