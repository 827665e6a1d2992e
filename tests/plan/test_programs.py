"""Programs that are planned beside the train step: what a Subject compiles, held by devices, counted and refused."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from toys import SMALL_DENOISE, FitLines, untrained

from dit_video.data.batch import Batch
from dit_video.diffusion.guidance import Guidance
from dit_video.diffusion.sampler import Euler
from dit_video.distributed.hardware import Chip
from dit_video.distributed.sharding import MeshShape, make_mesh, place_whole, replicated, shard_frozen
from dit_video.distributed.targets import parse_target
from dit_video.dit.action_condition import DiscreteActions
from dit_video.dit.dit import DiTConfig
from dit_video.dit.network import CausalFrames
from dit_video.evaluation.evaluators import HeldOutError, Reconstruction
from dit_video.evaluation.fvd import FVD
from dit_video.experiment import Experiment
from dit_video.nn.module import define, params_of
from dit_video.plan.compile import plan
from dit_video.plan.programs import EVALUATION_BATCH_SIZE, Prepared, TaskFunction, TrainStep, program_named
from dit_video.plan.search import remedies
from dit_video.tasks.keys import clip_keys
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.tasks.past_frames import PastFrames
from dit_video.tasks.subject import Subject
from dit_video.training.flops import count_flops

MESHES = {"data=8": MeshShape(), "data=2 fsdp=2 tensor=2": MeshShape(data=2, fsdp=2, tensor=2)}
NUM_STEPS, SHAPE = 3, (5, 16, 16)
FUNCTIONS = ("validate", "generate", "reconstruct")


@pytest.fixture(scope="module")
def experiment(denoise) -> Experiment:
    """Trained from a latent cache; guided at every level."""
    return untrained(dataclasses.replace(denoise, sampler=Euler(num_steps=NUM_STEPS), guidance=Guidance(scale=2.0)))


def prepared(experiment: Experiment, name: str, batch_size: int = 8) -> Prepared:
    mesh = make_mesh(experiment.mesh, jax.devices())
    return TaskFunction(name, batch_size).prepare(experiment, mesh, "on eight devices")


def judged(mesh: Mesh) -> tuple[Batch, jax.Array]:
    """A batch as evaluators hand it to a subject, and its keys, placed."""
    batch = Batch(video=np.zeros((8, *SHAPE, 3), np.uint8), signals={"label": np.zeros(8, np.int32)})
    return place_whole((batch, clip_keys(0, range(8))), mesh)


@pytest.fixture(scope="module", params=MESHES)
def opened(request, experiment) -> tuple[Experiment, Subject, tuple]:
    """The experiment on a mesh, and a subject with weights and frozen parts where `run/open_run.py` puts them."""
    experiment = dataclasses.replace(experiment, mesh=MESHES[request.param])
    task, mesh = experiment.task, make_mesh(experiment.mesh)
    params = jax.device_put(params_of(jax.jit(task.init)(jax.random.key(0))), replicated(mesh))
    frozen = jax.jit(task.blank)(jax.random.key(0))
    frozen = jax.device_put(frozen, shard_frozen(frozen, mesh))
    subject = Subject(task, define(task.init), frozen, mesh, {}).with_weights(params, step=0, ema=True)
    return experiment, subject, (params, frozen)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_planned_program_is_what_a_subject_compiles(opened, name):
    experiment, subject, held = opened
    with jax.set_mesh(subject.mesh):
        called = subject.programs[name].lower(*held, *judged(subject.mesh), SHAPE)
    assert prepared(experiment, name).lower().as_text() == called.as_text()


def test_parts_are_the_bytes_that_devices_hold_when_a_run_is_sampled(opened):
    experiment, subject, (params, frozen) = opened
    batch, keys = judged(subject.mesh)
    placed = (batch, jax.random.key_data(keys))
    of_eight = {
        name: sum(shard.data.nbytes for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards)
        for name, tree in {"parameters": params, "frozen parts": frozen, "batch": placed}.items()
    }
    found = plan(experiment, parse_target("cpu:8"), TaskFunction("generate", 8))
    assert {part.name: 8 * part.bytes for part in found.memory.parts} == of_eight
    assert found.memory.parts[0].whole == found.memory.parts[0].bytes
    # To the byte the compiler's own: also what the function does not read, as the encoder of the codec.
    assert found.memory.padding == 0
    assert (found.program, found.unit, found.clips, found.tokens) == ("generate", "call", 8, None)


def test_flops_are_those_of_the_network_at_each_step_and_of_the_codec(experiment, denoise):
    """Of the network for both halves of guidance; of the codec once."""
    definition, guided = define(denoise.init), experiment.task
    codec = jax.eval_shape(guided.blank, jax.eval_shape(lambda: jax.random.key(0))).codec
    of = jax.ShapeDtypeStruct
    latents, video = of((8, 2, 2, 2, 4), np.float32), of((8, *SHAPE, 3), np.uint8)

    def network(rows: int) -> int:
        x_t, t, label = of((rows, 2, 2, 2, 4), np.float32), of((rows, 1), np.float32), of((rows,), np.int32)
        call = lambda params, *arguments: definition.bind(params)(*arguments)  # noqa: E731
        return count_flops(call, definition.shapes, x_t, t, label)

    encoding = count_flops(lambda codec, video: codec.moments(video), codec, video)
    decoding = count_flops(lambda codec, latents: codec.decode(latents), codec, latents)
    flops = {name: prepared(experiment, name).flops for name in FUNCTIONS}
    assert flops["generate"] == NUM_STEPS * network(2 * 8) + decoding
    assert flops["validate"] == encoding + len(denoise.held_out_logsnr) * network(8)
    assert flops["reconstruct"] == encoding + decoding > 0
    plain = dataclasses.replace(experiment, task=dataclasses.replace(guided, guidance=Guidance()))
    assert prepared(plain, "generate").flops == NUM_STEPS * network(8) + decoding


def test_a_function_without_backbone_codec_or_clips_is_planned_as_well():
    """Whatever the batch of training is, which is no business of this one."""
    lines = untrained(FitLines(), batch_size=3)
    found = plan(lines, parse_target("cpu:8"), TaskFunction("reconstruct"))
    assert (found.flops, found.clips) == (0, EVALUATION_BATCH_SIZE)
    assert [part.name for part in found.memory.parts if part.bytes] == ["parameters", "batch"]


def test_a_batch_is_rounded_up_to_what_the_mesh_splits_as_in_evaluation(opened):
    experiment, subject, _ = opened
    for asked in (1, 9):
        assert prepared(experiment, "reconstruct", asked).clips == subject.batch_size(asked) >= asked
    assert prepared(experiment, "reconstruct", 16).clips == 16
    evaluators = (HeldOutError(every=1), Reconstruction(every=1), FVD(every=1))
    assert {evaluator.batch_size for evaluator in evaluators} == {EVALUATION_BATCH_SIZE}


def test_a_name_or_a_batch_that_there_is_not_is_refused(experiment):
    task = experiment.task
    assert program_named("train", task) == TrainStep()
    assert program_named("generate", task) == TaskFunction("generate", EVALUATION_BATCH_SIZE)
    assert program_named("generate", task, 3) == TaskFunction("generate", 3)
    has = "--program=rollout: a Denoise has no such program; it has train, validate, generate, reconstruct"
    with pytest.raises(ValueError, match=has):
        program_named("rollout", task)
    with pytest.raises(ValueError, match=has):
        prepared(experiment, "rollout")
    with pytest.raises(ValueError, match=r"--batch_size=8: .* --config.data.batch_size=8"):
        program_named("train", task, 8)
    with pytest.raises(ValueError, match="--batch_size=0: must be at least 1"):
        program_named("generate", task, 0)


@pytest.fixture(scope="module")
def too_many(experiment):
    """A call of four clips a device on devices that lack a little, and these."""
    experiment = untrained(experiment.task, size=(64, 64))
    program = TaskFunction("reconstruct", 32)
    chip = functools.partial(Chip, kind="toy", flops=1e9, hbm_bandwidth=1e9, links=1e9, network=None)
    target = dataclasses.replace(parse_target("cpu:8"), chip=chip(hbm=10**9))
    found = plan(experiment, target, program)
    target = dataclasses.replace(target, chip=chip(hbm=int(0.8 * found.memory.peak)))
    memory = dataclasses.replace(found.memory, hbm=target.memory)
    return experiment, target, dataclasses.replace(found, memory=memory), program


def test_a_call_that_does_not_fit_fits_with_fewer_clips(too_many):
    experiment, target, found, program = too_many
    assert found.memory.excess > 0
    *others, cure = remedies(experiment, target, found, program, limit=3)
    assert (cure.words, cure.fits, others) == (("--batch_size=16",), True, [])
    assert plan(experiment, target, TaskFunction("reconstruct", 16)).memory.peak == cure.peak <= target.memory


def test_where_one_clip_is_too_large_devices_share_its_tokens(too_many):
    experiment, target, found, program = too_many
    words = [cure.words for cure in remedies(experiment, target, found, program, limit=0)]
    assert words[:3] == [
        ("--batch_size=16",),
        ("--batch_size=8",),
        ("--config.mesh.data=4", "--config.mesh.context=2", "--batch_size=4"),
    ]


def test_nothing_helps_where_the_weights_are_too_large(too_many):
    experiment, target, found, program = too_many
    small = dataclasses.replace(found, memory=dataclasses.replace(found.memory, hbm=1000))
    assert list(remedies(experiment, target, small, program, limit=3)) == []


def test_a_call_costs_what_a_thousand_clips_take(too_many):
    _, _, found, _ = too_many
    assert found.job.name == "1,000 clips"
    assert found.binding is not None
    assert found.device_hours() == pytest.approx(found.binding.seconds * 1000 / 32 * 8 / 3600)


def test_the_planned_frame_is_that_of_a_world_and_costs_the_passes_of_its_steps():
    """Two frames in the first pass of the network and one in each other, and the decoder once for each."""
    task = world_of(4)
    found = {steps: program_named("frame", task).prepare(untrained(world_of(steps)), one(), "") for steps in (2, 4)}
    per_pass = (found[4].flops - found[2].flops) / 2
    vae = jax.eval_shape(task.blank, jax.eval_shape(lambda: jax.random.key(0))).codec.vae
    latent, cache = jax.ShapeDtypeStruct((1, 1, 2, 2, 4), np.float32), found[2].parts["stream"].decoder
    decoding = count_flops(lambda vae, z, cache: vae.decode_stream(z, cache)[0], vae, latent, cache)
    assert found[2].flops == pytest.approx(3 * per_pass + decoding, rel=0.02)
    assert (found[2].clips, found[2].counted) == (4, "frames")
    assert found[2].lower().compile() is not None
    with pytest.raises(ValueError, match="goes forward by no actions"):
        program_named("frame", SMALL_DENOISE).prepare(untrained(SMALL_DENOISE), one(), "")


def world_of(num_steps: int) -> Denoise:
    network = DiTConfig(hidden_size=32, depth=1, num_heads=2, patch_size=(1, 1, 1), causal=CausalFrames(window=2))
    actions = DiscreteActions(num_actions=3, frames_per_latent=4)
    sampler = Euler(num_steps=num_steps)
    return dataclasses.replace(SMALL_DENOISE, network=network, condition=actions, sampler=sampler, past=PastFrames())


def one() -> Mesh:
    return make_mesh(MeshShape(data=1), jax.devices()[:1])
