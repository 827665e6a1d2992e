import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from toys import FitLines, line_batch, small_mesh

from dit_video.checkpoint import FOLDER, Checkpoints, DamagedCheckpoint, digest_leaves, weights_digest
from dit_video.sharding import place
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
    opened = Checkpoints(tmp_path, keep=2, experiment=EXPERIMENT)
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


def test_a_donated_state_is_saved_as_it_was(checkpoints, program, state):
    """The loop goes on while Orbax writes, and gives the arrays away."""
    copy = jax.tree.map(jnp.copy, state)
    checkpoints.save(1, copy, next_batch=1)
    program.step(copy, None, place(line_batch(1), MESHES["data=8"]), 0)
    assert copy.params["line.kernel"].is_deleted()
    checkpoints.wait()
    assert_same_bits(checkpoints.restore(program.shapes).state, state)


def test_weights_alone_are_raw_or_averaged_and_on_every_device(checkpoints, program, state):
    checkpoints.save(1, state, next_batch=1)
    checkpoints.wait()
    for ema, wanted in ((False, state.params), (True, state.ema)):
        params = checkpoints.restore_params(program.definition.shapes, MESHES["fsdp=4 tensor=2"], ema=ema)
        assert_same_bits(params, wanted)
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
    with pytest.raises(DamagedCheckpoint, match=r"1: params is damaged in \['wide.kernel'\]; move this step away"):
        checkpoints.restore(shapes)


def test_a_file_that_cannot_be_decoded_is_found_and_its_array_named(checkpoints, large, tmp_path):
    checkpoints.save(1, large, next_batch=1)
    checkpoints.wait()
    flip_bit(tmp_path / FOLDER / "1" / "params", 0.0)
    shapes = {"wide.kernel": jax.ShapeDtypeStruct((64, 64), jnp.float32)}
    with pytest.raises(DamagedCheckpoint, match=r"1: cannot be read.*wide.kernel.*; move this step away"):
        checkpoints.restore_params(shapes, small_mesh(), ema=False)


def test_parameters_of_another_network_are_not_loaded(checkpoints, large):
    checkpoints.save(1, large, next_batch=1)
    checkpoints.wait()
    shapes = {"wide.kernel": jax.ShapeDtypeStruct((32, 64), jnp.float32)}
    with pytest.raises(DamagedCheckpoint, match=r"holds another network: .*\(32, 64\).*\(64, 64\)"):
        checkpoints.restore_params(shapes, small_mesh(), ema=False)


# --- digests ---

ARRAYS = {
    "float32": np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32),
    "bfloat16": np.random.default_rng(0).normal(size=(7,)).astype(jnp.bfloat16),
    "int32": np.int32(-2),
    "uint8": np.arange(6, dtype=np.uint8).reshape(1, 2, 3),
}


@pytest.mark.parametrize("x", ARRAYS.values(), ids=ARRAYS)
def test_any_single_bit_changes_the_digest(x):
    raw = np.frombuffer(np.asarray(x).tobytes(), np.uint8)
    flipped = np.repeat(raw[None], 8 * len(raw), axis=0)
    for bit in range(8 * len(raw)):
        flipped[bit, bit // 8] ^= 1 << bit % 8
    versions = np.concatenate([raw[None], flipped]).view(np.asarray(x).dtype).reshape(-1, *np.shape(x))
    digests = jax.jit(lambda xs: jax.lax.map(digest_leaves, xs))(versions)
    assert not np.any(np.asarray(digests[1:]) == digests[0])


def test_layout_does_not_change_the_digest_and_order_does():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 16)), jnp.float32)
    digest = jax.jit(digest_leaves)
    for mesh in MESHES.values():
        spec = PartitionSpec("fsdp", "tensor")
        assert digest(jax.device_put(x, NamedSharding(mesh, spec))) == digest(x)
    assert digest(x[::-1]) != digest(x)
    assert digest(x.T) != digest(x)


def test_weights_have_one_name_that_their_names_shapes_and_numbers_decide():
    weights = {"a": jnp.ones((2, 3)), "b": jnp.zeros(2)}
    name = weights_digest(weights)
    assert name == weights_digest(dict(reversed(weights.items())))
    others = [
        {"a": jnp.ones((2, 3)), "c": jnp.zeros(2)},
        {"a": jnp.ones((2, 3)), "b": jnp.zeros((2, 1))},
        {"a": jnp.ones((2, 3)).at[1, 1].set(1 + 2**-23), "b": jnp.zeros(2)},
        {"a": jnp.ones((2, 3)), "b": jnp.zeros(2, jnp.int32)},
    ]
    assert len({name, *map(weights_digest, others)}) == 5
