"""What XLA's CPU compiler says of a small train step: a guard against steps that do, move or keep more than they did.

For accelerators `tools.step_guard` compares in the same way. Where another version of JAX compiles other programs the
figures are to be measured anew: the assertion prints them.
"""

import dataclasses

import jax
from toys import SMALL_DENOISE, small_mesh, untrained

from dit_video.dit.dit import DiTConfig
from dit_video.plan.programs import TrainStep

# JAX 0.10.2, one device, with AdamW and an average of the weights.
KNOWN = {"flops": 123_980_224, "bytes accessed": 71_790_816, "temporaries": 9_495_568}
TOLERANCE = 1.03


def test_a_small_step_costs_what_it_did():
    network = DiTConfig(hidden_size=64, depth=3, num_heads=2, patch_size=(1, 1, 1))
    experiment = untrained(dataclasses.replace(SMALL_DENOISE, network=network), size=(64, 64), batch_size=2)
    mesh = small_mesh(1, data=1)
    with jax.set_mesh(mesh):
        compiled = TrainStep().prepare(experiment, mesh, "cpu:1").lower().compile()
    costs, memory = compiled.cost_analysis(), compiled.memory_analysis()
    found = {name: round(costs[name]) for name in ("flops", "bytes accessed")}
    found["temporaries"] = memory.temp_size_in_bytes
    grown = {name: (KNOWN[name], number) for name, number in found.items() if number > KNOWN[name] * TOLERANCE}
    assert not grown, found
