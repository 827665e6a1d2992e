"""Laws of runs whose clips have several shapes: equal work, the same losses on any devices, killed and resumed."""

import contextlib
import dataclasses
import hashlib

import jax
import numpy as np
import pytest
from line_training import without_rates
from rich.console import Console
from toys import SMALL_DENOISE, Sized, small_mesh, untrained
from trained_by_processes import MendTokens

from dit_video.checkpoint.checkpoints import Checkpoints
from dit_video.config.user_file import ExperimentError
from dit_video.data.dataset import Data
from dit_video.data.record import Examples, Split
from dit_video.data.shapes import BatchShape
from dit_video.data.sources import SourceInfo
from dit_video.data.transforms import ClipTransform
from dit_video.distributed.sharding import place, rows_here
from dit_video.evaluation.evaluators import HeldOutError
from dit_video.experiment import Experiment
from dit_video.run import checks, workload
from dit_video.run.folder import AllowedChanges
from dit_video.run.open_run import program_of
from dit_video.run.preflight import preflight
from dit_video.run.shapes import MOST_SPREAD, balanced, spread
from dit_video.run.train import train
from dit_video.training.fault_policy import Faults, RollBack
from dit_video.training.intervals import Schedule
from dit_video.training.optimizer import EMA, AdamW
from dit_video.training.tracker import read_record

EXTENTS = [(4, 8, 8)] * 9 + [(5, 6, 12)] * 7 + [(1, 16, 16)] * 12
SHAPES = (
    BatchShape(num_frames=4, size=(8, 8)),
    BatchShape(num_frames=4, size=(4, 12)),
    BatchShape(num_frames=1, size=(16, 16)),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixed:
    """A source of videos and pictures in memory, the same in both splits.

    Attributes:
        broken: while it is set, the record of this number ends training, as a kill does.
    """

    broken: int | None = None

    def open(self, split: Split) -> Examples:
        broken = self.broken

        class Breaking(Sized):
            def __getitem__(self, index):
                if index == broken:
                    raise OSError("killed here")
                return super().__getitem__(index)

        return Breaking(EXTENTS)

    def info(self) -> SourceInfo:
        digest = hashlib.sha256(b"mixed").hexdigest()
        counts, digests = dict.fromkeys(Split, len(EXTENTS)), dict.fromkeys(Split, digest)
        return SourceInfo(class_names=(), num_records=counts, digest=digest, split_digest=digests)


def mixed(**fields) -> Experiment:
    data = Data(
        source=Mixed(),
        clips=ClipTransform(num_frames=4, size=(8, 8)),
        batch_size=8,
        shapes=SHAPES,
        batch_multiple=8,
        num_threads=1,
    )
    options = {
        "data": data,
        "evaluators": {"held-out": HeldOutError(every=6, num_clips=8, batch_size=8)},
        "schedule": Schedule(num_steps=9, log_every=2, save_every=3),
    }
    return Experiment(task=MendTokens(), optimizer=AdamW(learning_rate=1e-2), ema=EMA(decay=0.9), **options | fields)


def attention(*shapes: BatchShape, batch_size: int = 16, **fields) -> Experiment:
    """On data that are nowhere, a network whose attention is quadratic."""
    of_one = untrained(SMALL_DENOISE, size=(32, 32), batch_size=batch_size)
    return dataclasses.replace(of_one, data=dataclasses.replace(of_one.data, shapes=shapes, **fields))


def test_a_step_of_every_shape_takes_equal_work_and_none_equal_tokens():
    shapes = [BatchShape(num_frames=t, size=size) for t, size in [(1, (32, 32)), (9, (64, 32))]]
    experiment = balanced(attention(*shapes, batch_size=64))
    works = [work for _, work in workload.shapes_of_batches(experiment)]
    assert min(work.clips for work in works) >= 16
    assert spread([work.flops for work in works]) < MOST_SPREAD
    assert works[1].tokens != works[0].tokens
    assert works[0].clips > 64 > works[1].clips
    assert balanced(experiment) is experiment
    # Given by hand, it stays; chosen, it is a multiple.
    given = BatchShape(num_frames=1, size=(64, 64), batch_size=3)
    by_hand, chosen = balanced(attention(given, shapes[0], batch_multiple=8)).data.shapes
    assert by_hand.batch_size == 3
    assert chosen.batch_size % 8 == 0


@pytest.mark.slow
def test_loss_and_gradient_of_clips_are_the_same_whichever_shapes_there_are_besides():
    shape = BatchShape(num_frames=5, size=(16, 32), batch_size=2)
    alone, among = attention(shape), attention(shape, BatchShape(num_frames=1, size=(32, 32), batch_size=4))
    programs = [program_of(experiment, small_mesh()) for experiment in (alone, among)]
    batch = alone.task.random(np.random.default_rng(0), alone.task.example(alone.by_shape()[0].data, 2))
    frozen, mesh = alone.task.blank(jax.random.key(0)), small_mesh()
    results = [program.gradient(program.init(0), frozen, place(batch, mesh), 0) for program in programs]
    jax.tree.map(np.testing.assert_array_equal, *results)


def losses_on(num_devices: int, count: int) -> list[float]:
    experiment, mesh = balanced(mixed()), small_mesh(num_devices)
    program = program_of(experiment, mesh)
    state, losses = program.init(0), []
    with contextlib.closing(experiment.data.train(0, 0, rows=lambda size: rows_here(mesh, size).tolist())) as batches:
        for _ in range(count):
            state, metrics = program.step(state, None, place(next(batches), mesh), 0)
            losses.append((float(metrics["loss"]), int(metrics["rows"])))
    return losses


@pytest.mark.slow
def test_losses_are_the_same_on_one_device_and_on_eight():
    one, eight = losses_on(1, 6), losses_on(8, 6)
    # `rows` is exact, and another number wherever a batch has other rows.
    assert [rows for _, rows in one] == [rows for _, rows in eight]
    np.testing.assert_allclose([loss for loss, _ in one], [loss for loss, _ in eight], rtol=1e-5)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "run"
    train(mixed(), folder, console=Console(quiet=True))
    return folder


def last(folder):
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(program_of(balanced(mixed()), small_mesh(8)).shapes)


def assert_same_run(folder, other) -> None:
    assert without_rates(read_record(folder)) == without_rates(read_record(other))
    one, two = last(folder), last(other)
    assert (one.step, one.next_batch) == (two.step, two.next_batch)
    jax.tree.map(np.testing.assert_array_equal, one.state, two.state)


@pytest.mark.slow
def test_all_programs_are_compiled_before_the_first_step_and_none_later(straight):
    record = list(read_record(straight))
    assert {line["shape"] for line in record if "loss" in line} == {0.0, 1.0, 2.0}
    assert {line["rates"]["compiled_later"] for line in record if "rates" in line} == {0.0}


@pytest.mark.slow
def test_a_run_of_videos_and_pictures_that_was_killed_goes_on_to_the_same_bits(straight, tmp_path):
    """Weights, their average, the optimizer, the data position and the record."""
    # A record that the first checkpoint comes before, on a batch of which it is the first read.
    order = [line["shape"] for line in read_record(straight) if "loss" in line]
    assert len(set(order[:4])) > 1
    with contextlib.closing(balanced(mixed()).data.train(0, 0)) as batches:
        seen = [set(next(batches).signals["label"].tolist()) for _ in range(9)]
    broken = next(iter(seen[5] - set().union(*seen[:5])))
    data = dataclasses.replace(mixed().data, source=Mixed(broken=broken))
    killed = tmp_path / "killed"
    with pytest.raises(OSError, match="killed here"):
        train(mixed(data=data), killed, console=Console(quiet=True))
    with Checkpoints(killed) as checkpoints:
        assert checkpoints.steps == [3]
    train(mixed(), killed, allow=AllowedChanges(experiment=True), console=Console(quiet=True))
    assert_same_run(killed, straight)


@pytest.mark.slow
def test_a_run_that_was_rolled_back_goes_on_with_the_batches_after_the_one_at_fault(tmp_path):
    class Once(MendTokens):
        """Its loss is not finite at the step that follows the fifth."""

        def loss(self, model, frozen, batch, rng, step):
            loss, metrics = super().loss(model, frozen, batch, rng, step)
            return loss + jax.numpy.where(metrics["rows"] == bad, jax.numpy.nan, 0.0), metrics

    experiment = mixed(faults=Faults(not_finite=RollBack()), evaluators={})
    with contextlib.closing(balanced(experiment).data.train(0, 0)) as batches:
        made = [next(batches) for _ in range(10)]
    sums = made[4].video.astype(np.int32).sum((1, 2, 3, 4)) % 1000
    bad = int((sums * (1 + np.arange(len(sums)))).sum())
    train(dataclasses.replace(experiment, task=Once()), tmp_path / "run", console=Console(quiet=True))
    record = [line for line in read_record(tmp_path / "run") if "loss" in line]
    shapes = [SHAPES.index(dataclasses.replace(s, batch_size=None)) for s in (_shape(batch) for batch in made)]
    # Back to step 3, then batch 5.
    assert [line["shape"] for line in record] == [*shapes[:3], *shapes[5:10], record[-1]["shape"]]


def _shape(batch) -> BatchShape:
    return BatchShape(num_frames=batch.video.shape[1], size=batch.video.shape[2:4])


def test_what_does_not_fit_is_refused_with_both_numbers_and_the_remedy():
    odd = BatchShape(num_frames=5, size=(20, 32))
    with pytest.raises(ExperimentError, match=r"config\.data\.shapes: 5x20x32: .*\(5, 20, 32\)"):
        balanced(attention(odd))
    sized = balanced(mixed(data=dataclasses.replace(mixed().data, batch_multiple=1)))
    with pytest.raises(ExperimentError, match=r"shapes\[\d\]\.batch_size=\d+: must be a multiple of .*_multiple=1"):
        checks.check_mesh(sized, small_mesh(8))
    with pytest.raises(ValueError, match=r"num_microbatches=3: must divide data\.batch_multiple=8"):
        mixed(num_microbatches=3, data=dataclasses.replace(mixed().data, batch_size=9))
    with pytest.raises(ValueError, match=r"num_microbatches=2: must divide data\.shapes\[0\]\.batch_size=3"):
        dataclasses.replace(attention(dataclasses.replace(odd, batch_size=3)), num_microbatches=2)
    assert preflight(mixed()) == []
