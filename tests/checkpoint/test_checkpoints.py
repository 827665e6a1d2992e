import contextlib
import errno
import gc
import json
import os
import random
import resource
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from toys import FitLines, line_batch, small_mesh

from dit_video.checkpoint import writer
from dit_video.checkpoint.checkpoints import Checkpoints, DamagedCheckpoint
from dit_video.checkpoint.compatibility import OtherNetwork
from dit_video.checkpoint.folder import DAMAGED_FOLDER, FOLDER
from dit_video.checkpoint.identity import Identity, OtherRun
from dit_video.checkpoint.retention import Keep, Retention
from dit_video.distributed.sharding import place
from dit_video.storage import failures
from dit_video.training.optimizer import EMA, AdamW, Group, Muon
from dit_video.training.step import Program, TrainState, make_program

EXPERIMENT = {"class": "Experiment", "seed": 3}
MESHES = {"one": small_mesh(), "data=8": small_mesh(8), "fsdp=4 tensor=2": small_mesh(8, fsdp=4, tensor=2)}


def program_of(mesh: Mesh, optimizer: AdamW | Muon) -> Program:
    return make_program(FitLines(), optimizer, EMA(), num_steps=10, num_microbatches=1, mesh=mesh)


@pytest.fixture(scope="module")
def program() -> Program:
    return program_of(MESHES["data=8"], AdamW())


@pytest.fixture(scope="module")
def state(program) -> TrainState:
    """After a step: no array is zero by birth."""
    return program.step(program.init(0), None, place(line_batch(0), MESHES["data=8"]), 0)[0]


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path, retention=Retention(Keep(latest=2)), experiment=EXPERIMENT)
    yield opened
    opened.close()


def assert_same_bits(one, other) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_a_state_comes_back_bit_for_bit_with_its_data_position_and_experiment(checkpoints, program, state):
    checkpoints.save(1, state, next_batch=17)
    checkpoints.wait()
    saved = checkpoints.restore(program.shapes)
    assert_same_bits(saved.state, state)
    assert (saved.step, saved.next_batch, saved.experiment) == (1, 17, EXPERIMENT)


@pytest.mark.parametrize(
    "optimizer",
    [AdamW(groups=(Group(prefix="line.bias", learning_rate=1e-3),)), Muon()],
    ids=["AdamW in groups", "Muon"],
)
def test_every_kind_of_optimizer_state_comes_back(checkpoints, optimizer):
    """NamedTuples in dicts of partitions, with holes where another group has the parameter."""
    program = program_of(MESHES["data=8"], optimizer)
    state = program.init(0)
    checkpoints.save(1, state, next_batch=0)
    checkpoints.wait()
    assert_same_bits(checkpoints.restore(program.shapes).state, state._replace(step=np.int32(1)))


@pytest.mark.parametrize("mesh", ["one", "fsdp=4 tensor=2"])
def test_a_state_goes_on_on_another_mesh(checkpoints, state, mesh):
    checkpoints.save(1, state, next_batch=1)
    checkpoints.wait()
    elsewhere = program_of(MESHES[mesh], AdamW())
    restored = checkpoints.restore(elsewhere.shapes).state
    assert_same_bits(restored, state)
    for leaf, shape in zip(jax.tree.leaves(restored), jax.tree.leaves(elsewhere.shapes)):
        assert leaf.sharding == shape.sharding


@pytest.mark.parametrize("least_slice", [1, writer._LEAST_SLICE])
def test_a_donated_state_is_saved_as_it_was(tmp_path, program, state, least_slice, monkeypatch):
    """The loop goes on while Orbax writes, and gives the arrays away.

    Slices are copies. What is written whole is a view on a CPU, which keeps the array until it is written.
    """
    monkeypatch.setattr(writer, "_LEAST_SLICE", least_slice)
    with Checkpoints(tmp_path, experiment=EXPERIMENT) as checkpoints:
        copy = jax.tree.map(jnp.copy, state)
        checkpoints.save(1, copy, next_batch=1)
        program.step(copy, None, place(line_batch(1), MESHES["data=8"]), 0)
        assert least_slice > 1 or copy.params["line.kernel"].is_deleted()
        checkpoints.wait()
        assert_same_bits(checkpoints.restore(program.shapes).state, state)


def test_weights_alone_are_raw_or_averaged_and_on_every_device(checkpoints, program, state):
    checkpoints.save(1, state, next_batch=1)
    checkpoints.wait()
    for ema, expected in ((False, state.params), (True, state.ema)):
        params = checkpoints.restore_params(program.definition.shapes, MESHES["fsdp=4 tensor=2"], ema=ema)
        assert_same_bits(params, expected)
        assert all(value.sharding.is_fully_replicated for value in params.values())
    assert not np.array_equal(state.params["line.kernel"], state.ema["line.kernel"])


def test_the_last_ones_are_kept_and_a_step_is_saved_once(checkpoints, program, state):
    for step in (1, 2, 3):
        # At once, although the one before is still being written.
        checkpoints.save(step, state, next_batch=step)
    checkpoints.wait()
    checkpoints.save(3, state, next_batch=99)
    checkpoints.wait()
    assert checkpoints.steps == [2, 3]
    assert checkpoints.latest == 3
    assert checkpoints.metadata()["next_batch"] == 3
    assert checkpoints.restore(program.shapes, 2).next_batch == 2
    with pytest.raises(FileNotFoundError, match="no step 1; there are 2, 3"):
        checkpoints.restore(program.shapes, 1)


def test_a_folder_without_checkpoints_says_how_to_get_one(checkpoints, program):
    assert checkpoints.latest is None
    with pytest.raises(FileNotFoundError, match="no checkpoint; `dit-video train"):
        checkpoints.restore(program.shapes)


# --- damage ---


def flip_bit(folder, position: float) -> None:
    """Flips a bit at `position` (0 to 1) of the largest file, which holds the numbers of the largest array."""
    file = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[int(position * (len(data) - 1))] ^= 1 << 4
    file.write_bytes(bytes(data))


@pytest.fixture
def large() -> TrainState:
    """Numbers that do not compress and fill a file of their own."""
    params = {"wide.kernel": jnp.asarray(np.random.default_rng(0).normal(size=(64, 64)), jnp.float32)}
    return TrainState(jnp.int32(1), params, {"wide.kernel": jnp.zeros((64, 64))}, {"count": jnp.int32(1)})


def test_a_bit_that_flipped_on_disk_is_found_and_its_array_named(checkpoints, large, tmp_path):
    """Orbax itself loads it without a word."""
    checkpoints.save(1, large, next_batch=1)
    checkpoints.wait()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), large)
    assert_same_bits(checkpoints.restore(shapes).state, large)
    flip_bit(tmp_path / FOLDER / "1" / "params", 0.5)
    with pytest.raises(DamagedCheckpoint, match=r"1: params is damaged in \['wide.kernel'\]"):
        checkpoints.restore(shapes)


def test_a_file_that_cannot_be_decoded_is_found_and_its_array_named(checkpoints, large, tmp_path):
    checkpoints.save(1, large, next_batch=1)
    checkpoints.wait()
    flip_bit(tmp_path / FOLDER / "1" / "params", 0.0)
    shapes = {"wide.kernel": jax.ShapeDtypeStruct((64, 64), jnp.float32)}
    with pytest.raises(DamagedCheckpoint, match=r"1: cannot be read: .*wide.kernel"):
        checkpoints.restore_params(shapes, small_mesh(), ema=False)


def test_parameters_of_another_network_are_not_loaded(checkpoints, large):
    checkpoints.save(1, large, next_batch=1)
    checkpoints.wait()
    shapes = {"wide.kernel": jax.ShapeDtypeStruct((32, 64), jnp.float32)}
    with pytest.raises(OtherNetwork, match=r"another network.*\[64, 64\]\] there, .*\[32, 64\]\] here"):
        checkpoints.restore_params(shapes, small_mesh(), ema=False)


NUMBERS = np.random.default_rng(0).normal(size=(3, 32, 32)).astype(np.float32)
SMALL = TrainState(
    step=jnp.int32(2),
    params={"kernel": jnp.asarray(NUMBERS[0]), "bias": jnp.arange(3.0)},
    ema={"kernel": jnp.asarray(NUMBERS[1]), "bias": jnp.arange(3.0) + 1},
    opt_state=({"count": jnp.int32(7)}, {"kernel": jnp.asarray(NUMBERS[2])}),
)


@pytest.fixture(scope="module", autouse=True)
def _quick_to_collect() -> Iterator[None]:
    """Garbage is collected after each damaged read; what the other tests have left is not looked through every time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


SMALL_SHAPES = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), SMALL)


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A run with the steps 1 and 2, to be copied."""
    folder = tmp_path_factory.mktemp("template")
    opened = Checkpoints(folder, experiment=EXPERIMENT)
    for step in (1, 2):
        opened.save(step, SMALL, next_batch=10 * step)
        opened.wait()
    opened.close()
    return folder


@pytest.fixture
def workdir(template, tmp_path) -> Path:
    return shutil.copytree(template, tmp_path / "run")


@pytest.fixture
def copied(workdir) -> Iterator[Checkpoints]:
    opened = Checkpoints(workdir, experiment=EXPERIMENT)
    yield opened
    opened.close()


ITEMS = ("params", "ema", "opt_state")
OF_AN_ITEM = (
    "_METADATA",
    "_sharding",
    "commit_success.txt",
    "array_metadatas/process_0",
    "manifest.ocdbt",
    "d/*",
    "ocdbt.process_0/manifest.ocdbt",
    "ocdbt.process_0/d/*",
)
FILES = ("_CHECKPOINT_METADATA", "commit_success.txt", *(f"{item}/{file}" for item in ITEMS for file in OF_AN_ITEM))


def test_these_are_all_files_of_a_step(template):
    step = template / FOLDER / "2"
    actual = {path for pattern in FILES for path in step.glob(pattern)}
    assert actual == {path for path in step.rglob("*") if path.is_file()}


# Of one item here; the others have the same files.
@pytest.mark.parametrize(
    "pattern",
    [pytest.param(pattern, marks=[pytest.mark.slow] if pattern.startswith(ITEMS[1:]) else []) for pattern in FILES],
)
def test_whatever_happens_to_a_file_is_found_or_changes_nothing(copied, workdir, pattern):
    (file,) = (workdir / FOLDER / "2").glob(pattern)
    whole, rng = file.read_bytes(), random.Random(pattern)
    harms: list[bytes | None] = [None, b"", whole[: len(whole) // 2]]
    for _ in range(3):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        harms.append(bytes(flipped))
    for harm in harms:
        if harm is None:
            file.unlink()
        else:
            file.write_bytes(harm)
        with contextlib.suppress(DamagedCheckpoint):
            saved = copied.restore(SMALL_SHAPES, 2)
            assert_same_bits(saved.state, SMALL)
            assert (saved.step, saved.next_batch, saved.experiment) == (2, 20, EXPERIMENT)


def test_what_orbax_itself_refuses_is_damage(copied, workdir):
    file = workdir / FOLDER / "2" / "_CHECKPOINT_METADATA"
    file.write_bytes(file.read_bytes().replace(b"commit_timestamp", b"commiT_timestamp"))
    with pytest.raises(DamagedCheckpoint, match="unknown key commiT_timestamp_nsecs"):
        copied.restore(SMALL_SHAPES, 2)


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "params/manifest.ocdbt"])
def test_a_pipe_in_place_of_a_file_is_damage_and_not_waited_for(copied, workdir, name):
    (workdir / FOLDER / "2" / name).unlink()
    os.mkfifo(workdir / FOLDER / "2" / name)
    messages = []
    assert copied.resume(SMALL_SHAPES, messages.append).step == 1
    assert f"2/{name} is no plain file" in messages[0]


def test_the_last_good_step_is_used_and_what_is_damaged_is_set_aside(copied, workdir):
    flip_bit(workdir / FOLDER / "2" / "ema", 0.5)
    files = {p.name: p.read_bytes() for p in (workdir / FOLDER / "2").rglob("*") if p.is_file()}
    messages = []
    saved = copied.resume(SMALL_SHAPES, messages.append)
    assert (saved.step, saved.next_batch) == (1, 10)
    assert_same_bits(saved.state, SMALL._replace(step=np.int32(1)))
    assert copied.steps == [1]
    aside = workdir / DAMAGED_FOLDER / "2"
    assert {p.name: p.read_bytes() for p in aside.rglob("*") if p.is_file()} == files
    assert len(messages) == 1
    assert f"{FOLDER}/2: " in messages[0]
    assert str(aside) in messages[0]
    assert f"{FOLDER}/2: " in json.loads((workdir / DAMAGED_FOLDER / "2.json").read_text())["why"]
    # The run comes to this step again, and it may be damaged again.
    copied.save(2, SMALL, next_batch=20)
    copied.wait()
    assert copied.steps == [1, 2]
    (workdir / FOLDER / "2" / "_CHECKPOINT_METADATA").unlink()
    assert copied.resume(SMALL_SHAPES, messages.append).step == 1
    assert {p.name for p in (workdir / DAMAGED_FOLDER).iterdir()} == {"2", "2.json", "2_2", "2_2.json"}


def test_where_no_step_is_good_all_are_listed_and_stay(copied, workdir):
    flip_bit(workdir / FOLDER / "2" / "params", 0.0)
    (workdir / FOLDER / "1" / "_CHECKPOINT_METADATA").write_text("")
    with pytest.raises(DamagedCheckpoint, match=r"(?s)no checkpoint is good:\n.*/2: .*\n.*/1: its metadata"):
        copied.resume(SMALL_SHAPES, print)
    assert copied.steps == [1, 2]
    assert not (workdir / DAMAGED_FOLDER).exists()


def test_another_network_or_optimizer_is_not_damage(copied, workdir):
    """A user's change must move nothing."""
    bfloat16 = SMALL_SHAPES.params | {"bias": jax.ShapeDtypeStruct((3,), jnp.bfloat16)}
    fewer = {"kernel": SMALL_SHAPES.params["kernel"]}
    for changed, named in (
        (SMALL_SHAPES._replace(params=bfloat16), r"params has \['bias'\] \['float32', \[3\]\] there, \['bfloat16'"),
        (SMALL_SHAPES._replace(ema=fewer), r"ema has \['bias'\] .* there, nothing here"),
        (SMALL_SHAPES._replace(opt_state=()), r"opt_state has .*\['count'\]"),
    ):
        with pytest.raises(OtherNetwork, match=named):
            copied.resume(changed, print)
    assert copied.steps == [1, 2]
    assert not (workdir / DAMAGED_FOLDER).exists()


def test_what_hinders_reading_is_not_damage(copied, workdir, monkeypatch):
    """No file descriptor is left, as on a machine that is overloaded."""
    monkeypatch.setattr(failures, "READ_PAUSES", (0.0,))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = os.open(workdir, os.O_RDONLY)
    os.close(number)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, before[1]))
        with pytest.raises(OSError, match="Too many open files"):
            copied.resume(SMALL_SHAPES, print)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert copied.resume(SMALL_SHAPES, print).step == 2
    assert not (workdir / DAMAGED_FOLDER).exists()


@pytest.mark.parametrize("pattern", [file for file in FILES if not file.startswith(ITEMS[1:])])
@pytest.mark.parametrize("leads_to", ["itself", "nothing"])
def test_a_file_that_a_store_does_not_give_is_not_damage(copied, workdir, monkeypatch, pattern, leads_to):
    """A link that leads in a circle is an error of the store, and one to nothing is listed and not there."""
    monkeypatch.setattr(failures, "READ_PAUSES", ())
    (file,) = (workdir / FOLDER / "2").glob(pattern)
    away = file.rename(workdir / "away")
    file.symlink_to(file if leads_to == "itself" else workdir / "nowhere")
    with contextlib.suppress(OSError):  # not every file is read
        assert copied.resume(SMALL_SHAPES, print).step == 2
    assert copied.steps == [1, 2]
    assert not (workdir / DAMAGED_FOLDER).exists()
    away.replace(file)
    assert copied.resume(SMALL_SHAPES, print).step == 2


def test_a_store_that_fails_for_a_moment_is_waited_for(copied, workdir, messages, monkeypatch):
    monkeypatch.setattr(failures, "READ_PAUSES", (0.1,) * 50)
    (file,) = (workdir / FOLDER / "2").glob("params/ocdbt.process_0/d/*")
    away = file.rename(workdir / "away")
    file.symlink_to(file)
    threading.Timer(0.5, away.replace, [file]).start()
    assert copied.resume(SMALL_SHAPES, messages.append).step == 2
    assert not (workdir / DAMAGED_FOLDER).exists()


@pytest.mark.parametrize(
    ("error", "unfit"),
    [
        (ValueError('DATA_LOSS: Error opening "zarr3" driver: Expected 4 bytes'), True),
        (ValueError("Error opening \"cast\" driver: Error parsing [tensorstore_spec='{}']"), True),
        (ValueError("Words that nobody knows [tensorstore_spec='{}']"), False),
        (ValueError("NOT_FOUND: Error reading local file [os_error_code='2']"), True),
        (ValueError("FAILED_PRECONDITION: Error reading local file [os_error_code='107']"), False),
        (ValueError("UNKNOWN: Error opening \"zarr3\" driver [os_error_code='5']"), False),
        (ValueError("PERMISSION_DENIED: Error reading local file [os_error_code='13']"), False),
        (ValueError("NOT_FOUND: Error reading [http_response_code='404']"), False),
        (ValueError("words that nobody knows"), False),
        (json.JSONDecodeError("Expecting value", "", 0), True),
        (KeyError("value_metadata"), True),
        (FileNotFoundError("_METADATA"), True),
        (PermissionError("_METADATA"), False),
        (OSError(errno.EIO, "Input/output error"), False),
        (MemoryError(), False),
        (RuntimeError("words that nobody knows"), False),
    ],
)
def test_only_what_was_read_can_be_unfit(error, unfit):
    assert failures.is_unfit(error) == unfit


def test_a_half_written_step_is_set_aside_and_never_loaded(copied, workdir):
    unfinished = "3.orbax-checkpoint-tmp"
    shutil.copytree(workdir / FOLDER / "2", workdir / FOLDER / unfinished)
    assert copied.unfinished == [unfinished]
    messages = []
    assert copied.resume(SMALL_SHAPES, messages.append).step == 2
    assert unfinished in messages[0]
    assert copied.unfinished == []
    assert (workdir / DAMAGED_FOLDER / unfinished / "params").is_dir()


def edit_metadata(step: Path, edit) -> None:
    path = step / "_CHECKPOINT_METADATA"
    content = json.loads(path.read_text())
    edit(content["custom_metadata"])
    path.write_text(json.dumps(content))


def test_the_data_position_and_the_experiment_are_sealed(copied, workdir):
    step = workdir / FOLDER / "2"
    for name, value in (("next_batch", 21), ("experiment", EXPERIMENT | {"seed": 4})):
        before = copied.metadata(2)[name]
        edit_metadata(step, lambda content, change={name: value}: content.update(change))
        with pytest.raises(DamagedCheckpoint, match="2: its metadata has changed since it was written"):
            copied.metadata(2)
        edit_metadata(step, lambda content, change={name: before}: content.update(change))
    shutil.copytree(step, workdir / FOLDER / "5")
    with Checkpoints(workdir) as opened, pytest.raises(DamagedCheckpoint, match="5: it is step 2 under another name"):
        opened.restore(SMALL_SHAPES)


def test_a_checkpoint_of_another_run_is_refused_and_moved_nowhere(tmp_path):
    """One from before runs had names is not compared, and an experiment that was changed with leave is this run's."""
    ours, theirs = Identity("ours", "new", earlier=("old",)), Identity("theirs", "new")
    saved_as = {1: None, 2: Identity("ours", "old"), 3: ours, 4: Identity("ours", "another"), 5: theirs}
    with Checkpoints(tmp_path, experiment=EXPERIMENT, retention=Retention(Keep(latest=5))) as checkpoints:
        for step, identity in saved_as.items():
            checkpoints._identity = identity
            checkpoints.save(step, SMALL, next_batch=step)
        checkpoints.wait()
        assert checkpoints.run_on_record() == "theirs"
        checkpoints.bind(ours)
        for step in (1, 2, 3):
            assert checkpoints.restore(SMALL_SHAPES, step).step == step
        with pytest.raises(OtherRun, match="4: was saved with the experiment 'another', and this run has new, old"):
            checkpoints.restore(SMALL_SHAPES, 4)
        with pytest.raises(OtherRun, match="is a checkpoint of the run 'theirs', and this folder is of the run ours"):
            checkpoints.resume(SMALL_SHAPES, print)
        assert checkpoints.steps == list(saved_as)
        edit_metadata(tmp_path / FOLDER / "5", lambda content: content["run"].update(id="ours"))
        with pytest.raises(DamagedCheckpoint, match="5: its metadata has changed since it was written"):
            checkpoints.restore(SMALL_SHAPES, 5)
    assert not (tmp_path / DAMAGED_FOLDER).exists()


def test_a_checkpoint_of_version_0_1_is_still_read(copied, workdir):
    def unseal(content: dict) -> None:
        for name in ("step", "shapes", "seal"):
            del content[name]

    edit_metadata(workdir / FOLDER / "2", unseal)
    assert_same_bits(copied.restore(SMALL_SHAPES).state, SMALL)
    flip_bit(workdir / FOLDER / "2" / "ema", 0.5)
    with pytest.raises(DamagedCheckpoint):
        copied.restore(SMALL_SHAPES)
