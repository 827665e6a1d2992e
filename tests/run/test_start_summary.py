"""What a run says at its start follows from shapes: parameters, bytes of the state and of each device's part, batch."""

import dataclasses

import jax
from toys import SMALL_DENOISE, small_mesh, untrained

from dit_video.run import start_summary, workload
from dit_video.run.open_run import program_of
from dit_video.training.throughput import Work


def test_bytes_are_those_of_the_arrays_that_are_held():
    experiment, mesh = untrained(SMALL_DENOISE), small_mesh(4, data=1, fsdp=4)
    program = program_of(experiment, mesh)
    whole, each = start_summary.state_bytes(program.shapes)
    state = program.init(0)
    assert whole == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert each == sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    assert each < whole


def test_all_is_said_before_anything_is_compiled():
    experiment = dataclasses.replace(untrained(SMALL_DENOISE), num_microbatches=2)
    mesh = small_mesh(2, data=2)
    work = Work(clips=16, tokens=128, flops=10**9, peak=None)
    program = program_of(experiment, mesh)
    shapes = [(workload.abstract_batch(experiment), work)]
    text = "\n".join(start_summary.lines(experiment, program, mesh, shapes, num_records=640))
    assert "devices: 2 x cpu, mesh: data 2" in text
    assert f"Denoise: {program.definition.num_params:,} parameters; training state" in text
    assert "batch: 16 clips in 2 microbatches, 128 tokens: " in text
    assert "step: 1e+09 model FLOPs; 1,000 steps: 1e+12" in text
    assert "data: 640 training examples, each seen 25 times" in text
