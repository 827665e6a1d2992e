"""Programs that can be planned: the train step, or a function of the task; what each holds, computes and compiles."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dit_video.distributed.sharding import along_batch, even_batch, replicated
from dit_video.dit.network import Remat
from dit_video.experiment import Experiment
from dit_video.nn.module import define
from dit_video.run import workload
from dit_video.run.checks import check_mesh
from dit_video.run.open_run import clip_shape, program_of
from dit_video.tasks.keys import clip_keys
from dit_video.tasks.subject import compiled
from dit_video.tasks.task import ROLL_OUT, Function, Task
from dit_video.training.flops import count_flops

TRAIN, FRAME = "train", "frame"
# Clips of a call, as `dit-video evaluate run` and the evaluators have them.
EVALUATION_BATCH_SIZE = 16
_PRICED_CLIPS = 1000
_PRICED_FRAMES = 36_000


@dataclasses.dataclass(frozen=True)
class Job:
    """What device hours and a cost are those of.

    Attributes:
        num_calls: of the program; a part of one where one call makes more than is asked for.
    """

    name: str
    num_calls: int | float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A program on a mesh, ready to be compiled.

    Attributes:
        name: "train", "frame", or that of a function.
        unit: one execution of it: "step" or "call".
        parts: what devices hold while it is called, by name: trees of shapes with shardings, all of them arguments.
        clips: in one batch.
        tokens: in one batch; None where rates of tokens say nothing.
        flops: of one execution, all devices together, without what is computed a second time.
        recomputed_flops: what is computed a second time to save memory.
        lower: lowers it for the devices of the mesh, which need not be there.
        counted: what `clips` are: clips, or frames of one.
    """

    name: str
    unit: str
    parts: Mapping[str, Any]
    clips: int
    tokens: int | None
    flops: int
    recomputed_flops: int
    job: Job
    lower: Callable[[], jax.stages.Lowered]
    counted: str = "clips"


class PlannedProgram(abc.ABC):
    """A program of an experiment that a plan is made of."""

    @abc.abstractmethod
    def prepare(self, experiment: Experiment, mesh: Mesh, where: str) -> Prepared:
        """The program of `experiment` on a mesh, which `where` names in errors.

        Raises:
            ValueError: there is no such program, or it cannot run on such a mesh.
        """


@dataclasses.dataclass(frozen=True)
class TrainStep(PlannedProgram):
    """The train step: weights, their average and the optimizer are in memory."""

    def prepare(self, experiment: Experiment, mesh: Mesh, where: str) -> Prepared:
        check_mesh(experiment, mesh, where)
        program, work = program_of(experiment, mesh), workload.measure_work(experiment)
        frozen = workload.abstract_frozen(experiment.task, mesh)
        batch = _sharded(workload.abstract_batch(experiment), along_batch(mesh))
        state, seed = program.shapes, jax.ShapeDtypeStruct((), "int32", sharding=replicated(mesh))
        num_steps = experiment.schedule.num_steps
        return Prepared(
            name=TRAIN,
            unit="step",
            parts={
                "parameters": state.params,
                "their average (EMA)": state.ema,
                "optimizer": (state.step, state.opt_state),
                "frozen parts": frozen,
                "batch": (batch, seed),
            },
            clips=work.clips,
            tokens=work.tokens,
            flops=work.flops,
            recomputed_flops=recomputed_flops(experiment),
            job=Job(f"{num_steps:,} steps", num_steps),
            lower=lambda: program.lower(frozen, batch),
        )


@dataclasses.dataclass(frozen=True)
class TaskFunction(PlannedProgram):
    """A function of the task, as a `Subject` compiles it for the weights of an opened run: one set of weights, whole on
    every device, frozen parts as in training, and a batch of clips with their signals.

    Attributes:
        batch_size: at least so many clips; rounded up to what the mesh splits evenly, as evaluation does.
    """

    name: str
    batch_size: int = EVALUATION_BATCH_SIZE

    def prepare(self, experiment: Experiment, mesh: Mesh, where: str) -> Prepared:
        del where  # any batch is rounded up
        task, size, shape = experiment.task, even_batch(self.batch_size, mesh), clip_shape(experiment)
        definition, function = define(task.init), _function(task, self.name)
        params = _sharded(definition.shapes, replicated(mesh))
        frozen = workload.abstract_frozen(task, mesh)
        rows = (workload.abstract_judged_batch(experiment, size), jax.eval_shape(lambda: clip_keys(0, range(size))))
        batch, keys = _sharded(rows, along_batch(mesh))
        jitted = compiled(definition, function)
        return Prepared(
            name=self.name,
            unit="call",
            parts={
                "parameters": params,
                "frozen parts": frozen,
                "batch": (batch, keys),
            },
            clips=size,
            tokens=None,
            flops=count_flops(lambda *arguments: jitted(*arguments, shape), params, frozen, batch, keys),
            recomputed_flops=0,
            job=Job(f"{_PRICED_CLIPS:,} clips", _PRICED_CLIPS / size),
            lower=lambda: _lowered(mesh, jitted, params, frozen, batch, keys, shape),
        )


@dataclasses.dataclass(frozen=True)
class NextFrame(PlannedProgram):
    """The next frame of a world, or those of the next latent frame, as `run/world.py` compiles it, on every device.

    Steps are the sampler's, and guidance is carried along where the task has some.
    """

    def prepare(self, experiment: Experiment, mesh: Mesh, where: str) -> Prepared:
        del where  # it is the same on all devices
        task, shape = experiment.task, clip_shape(experiment)
        roll_out, definition = task.roll_out(shape), define(task.init)
        codec = workload.abstract_frozen(task).codec
        settings, condition = roll_out.settings(), roll_out.condition
        num_frames = condition.frames_per_latent
        none = jax.ShapeDtypeStruct((1, num_frames, *condition.none.shape), condition.none.dtype)

        def begin(params: Any, codec: Any, actions: Any) -> Any:
            model, first = definition.bind(params), np.zeros((1, 1, *shape[1:], 3), np.uint8)
            return roll_out.begin_shown(model, codec, first, actions[:, :1], clip_keys(0, [0]))[0]

        def step(params: Any, blocks: Any, codec: Any, shown: Any, actions: Any) -> Any:
            return roll_out.step_shown(definition.bind(params), blocks, codec, shown, actions, settings)

        held = {
            "parameters": definition.shapes,
            "their blocks one by one": jax.eval_shape(lambda p: definition.bind(p).unstacked(), definition.shapes),
            "frozen parts": codec,
            "stream": jax.eval_shape(begin, definition.shapes, codec, none),
            "actions": none,
        }
        held = {name: _sharded(part, replicated(mesh)) for name, part in held.items()}
        jitted = jax.jit(step, donate_argnums=3, keep_unused=True)
        return Prepared(
            name=FRAME,
            unit=FRAME if num_frames == 1 else "latent frame",
            parts=held,
            clips=num_frames,
            tokens=None,
            flops=count_flops(jitted, *held.values()),
            recomputed_flops=0,
            job=Job(f"{_PRICED_FRAMES:,} frames", _PRICED_FRAMES / num_frames),
            lower=lambda: _lowered(mesh, jitted, *held.values()),
            counted="frames",
        )


def program_named(name: str, task: Task, batch_size: int | None = None) -> PlannedProgram:
    """The program of a task by its name: "train", "frame" of a world, or one of the task's functions.

    Args:
        batch_size: of a function, None for that of evaluation.

    Raises:
        ValueError: there is none of this name, with those that there are; or a batch size that it cannot have.
    """
    if name == TRAIN and batch_size is not None:
        raise ValueError(
            f"--batch_size={batch_size}: a train step has the batch of its experiment; give "
            f"--config.data.batch_size={batch_size}, or name another --program"
        )
    if name == FRAME and batch_size is not None:
        raise ValueError(f"--batch_size={batch_size}: a frame is of one stream; leave it out")
    if name in (TRAIN, FRAME):
        return TrainStep() if name == TRAIN else NextFrame()
    _function(task, name)
    if batch_size is None:
        return TaskFunction(name)
    if batch_size < 1:
        raise ValueError(f"--batch_size={batch_size}: must be at least 1")
    return TaskFunction(name, batch_size)


def recomputed_flops(experiment: Experiment) -> int:
    """FLOPs that rematerialisation (`remat`) adds to one step, all devices together.

    The optimizer's own arithmetic is in no count: it grows with parameters, not with tokens.
    """
    backbone = experiment.task.backbone
    if backbone is None or backbone.remat is Remat.NOTHING_RECOMPUTED:
        return 0
    return gradient_flops(experiment, backbone.remat) - gradient_flops(experiment, Remat.NOTHING_RECOMPUTED)


def gradient_flops(experiment: Experiment, remat: Remat) -> int:
    """FLOPs of one gradient under a policy for the task's backbone, all devices together; none is touched.

    Raises:
        ValueError: the task has no backbone.
    """
    # What waits on the host is not computed in another way.
    policy = Remat.FULL if remat is Remat.OFFLOAD else remat
    backbone = experiment.task.backbone
    if backbone is None:
        raise ValueError(f"{type(experiment.task).__name__}.backbone is None: there is no rematerialisation to choose")
    task = experiment.task.with_backbone(dataclasses.replace(backbone, remat=policy))
    definition, frozen = define(task.init), workload.abstract_frozen(task)

    def gradient(params, frozen, batch, key, step):
        return jax.grad(lambda params: task.loss(definition.bind(params), frozen, batch, key, step)[0])(params)

    key = jax.eval_shape(lambda: jax.random.key(0))
    step = jax.ShapeDtypeStruct((), "int32")
    return count_flops(gradient, definition.shapes, frozen, workload.abstract_batch(experiment), key, step)


def _function(task: Task, name: str) -> Function:
    functions = task.functions()
    programs = [TRAIN, *functions, *([FRAME] if ROLL_OUT in functions else [])]
    if name not in functions:
        raise ValueError(f"--program={name}: a {type(task).__name__} has no such program; it has {', '.join(programs)}")
    return functions[name]


def _sharded(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _lowered(mesh: Mesh, jitted: Any, *arguments: Any) -> jax.stages.Lowered:
    with jax.set_mesh(mesh):
        return jitted.lower(*arguments)
