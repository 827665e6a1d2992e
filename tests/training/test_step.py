import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from rich.filesize import decimal
from toys import WIDTH, FitLines, line_batch, small_mesh

from dit_video.arrays import Mean
from dit_video.distributed.sharding import place
from dit_video.training.compilations import num_compiled
from dit_video.training.fault_recovery import numbers
from dit_video.training.optimizer import EMA, AdamW
from dit_video.training.step import Program, TrainState, make_program
from dit_video.training.throughput import step_memory

MESH = small_mesh()


def program_of(*, noise: float = 0.0, num_microbatches: int = 1, mesh: Mesh = MESH) -> Program:
    return make_program(
        FitLines(noise=noise),
        AdamW(learning_rate=0.01),
        EMA(decay=0.9),
        num_steps=10,
        num_microbatches=num_microbatches,
        mesh=mesh,
    )


def run(
    program: Program, *, seed: int = 0, steps: range = range(3), state: TrainState | None = None, mesh: Mesh = MESH
):
    """Trains on batches numbered by step; returns the last state and the metrics of each step."""
    state, history = state or program.init(seed), []
    for step in steps:
        state, metrics = program.step(state, None, place(line_batch(step), mesh), seed)
        history.append(jax.device_get(metrics))
    return state, history


@pytest.fixture(scope="module")
def noisy() -> Program:
    return program_of(noise=0.5)


@pytest.fixture(scope="module")
def whole():
    return run(program_of())


@pytest.mark.parametrize("mesh", [MESH, small_mesh(8, data=1, fsdp=2, tensor=4)], ids=["one device", "eight"])
def test_accumulated_gradients_are_those_of_the_whole_batch(mesh, whole):
    """For a loss that is a mean over rows and draws nothing."""
    parts = run(program_of(num_microbatches=4, mesh=mesh), mesh=mesh)
    for name, value in whole[0].params.items():
        np.testing.assert_allclose(parts[0].params[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    for one, other in zip(whole[1], parts[1]):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)
        # The mean of four draws of their own, which is not the one draw of the whole.
        assert 0 < other["draw"] < 1
        assert other["draw"] != one["draw"]


def test_a_step_is_compiled_once(noisy, caplog):
    def compilations() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.getMessage().startswith("Compiling")]

    shapes = [place(line_batch(0, size=size), MESH) for size in (8, 4)]
    state, before = noisy.init(0), num_compiled()
    compiled, _ = noisy.compile(None, shapes)
    assert num_compiled() - before == 2
    with jax.log_compiles():
        run(noisy, steps=range(1, 5), state=state)
        noisy.step(noisy.init(0), None, shapes[1], 0)
        assert [line for line in compilations() if "step" in line] == []
        jax.jit(lambda x: x + 1)(1.0)
    assert any("lambda" in line for line in compilations())
    stats, again = compiled.memory_analysis(), noisy.init(0)
    assert stats is not None
    assert f"arguments {decimal(stats.argument_size_in_bytes)}, temporary " in str(step_memory([compiled]))
    assert stats.argument_size_in_bytes >= sum(x.nbytes for x in jax.tree.leaves(again))


def test_what_is_drawn_is_a_function_of_seed_and_step(noisy):
    _, history = run(noisy)
    _, again = run(noisy)
    assert history == again
    assert len({float(metrics["draw"]) for metrics in history}) == 3
    _, other = run(noisy, seed=1)
    assert {float(m["draw"]) for m in other}.isdisjoint(float(m["draw"]) for m in history)


def test_a_state_that_was_put_aside_goes_on_as_if_it_had_not(noisy):
    straight, history = run(noisy, steps=range(4))
    half, _ = run(noisy, steps=range(2))
    aside = jax.tree.map(np.array, half)
    back = jax.device_put(aside, jax.tree.map(lambda s: s.sharding, noisy.shapes))
    resumed, rest = run(noisy, steps=range(2, 4), state=back)
    assert rest == history[2:]
    jax.tree.map(np.testing.assert_array_equal, resumed, straight)


def test_initialisation_is_a_function_of_the_seed(noisy):
    one, other = noisy.init(0), noisy.init(1)
    jax.tree.map(np.testing.assert_array_equal, one, noisy.init(0))
    assert not np.array_equal(one.params["line.kernel"], other.params["line.kernel"])
    jax.tree.map(np.testing.assert_array_equal, one.ema, one.params)
    assert one.step == 0


def test_a_step_learns_averages_counts_and_gives_the_old_state_away(noisy):
    first = noisy.init(0)
    before = first.params["line.kernel"].copy()
    state, (metrics,) = run(noisy, steps=range(1), state=first)
    assert first.params["line.kernel"].is_deleted()
    assert state.step == 1
    kernel, average = state.params["line.kernel"], state.ema["line.kernel"]
    # One step of Adam moves every number by its learning rate; the first decay of the average is 0.1.
    np.testing.assert_allclose(np.abs(kernel - before), 0.01, rtol=1e-3)
    np.testing.assert_allclose(average, 0.1 * before + 0.9 * kernel, rtol=1e-5, atol=1e-7)
    assert metrics.keys() == {"loss", "error", "draw", "grad_norm"}
    assert kernel.shape == (WIDTH, WIDTH)


class SomeRows(FitLines):
    """Metrics over the rows of label 0, of which most parts of a batch have none, and over none at all."""

    def loss(self, model, frozen, batch, rng, step):
        loss, _ = super().loss(model, frozen, batch, rng, step)
        first = jnp.asarray(batch.signals["label"] == 0, jnp.float32)
        values = batch.moments[:, 0, 0, 0, 0]
        return loss, {"first": Mean(jnp.sum(values * first), jnp.sum(first)), "none": Mean(0 * loss, 0 * loss)}


def test_a_mean_over_some_is_that_of_the_whole_batch_in_parts_too_and_over_none_it_is_absent():
    program = make_program(SomeRows(), AdamW(), EMA(), num_steps=1, num_microbatches=4, mesh=MESH)
    _, (metrics,) = run(program, steps=range(1))
    values = numbers(metrics)
    assert values.keys() == {"loss", "first", "grad_norm"}
    assert values["first"] == pytest.approx(float(line_batch(0).moments[0, 0, 0, 0, 0]))


def test_compiler_options_reach_the_compiler():
    program = make_program(
        FitLines(), AdamW(), EMA(), num_steps=1, num_microbatches=1, mesh=MESH, compiler_options={"xla_nonsense": True}
    )
    with pytest.raises(RuntimeError, match="xla_nonsense"):
        run(program, steps=range(1))
