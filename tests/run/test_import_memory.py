"""What `dit-video import` holds in memory, as the system counts it: a child imports a folder of many shards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel

from dit_video.data.dataset import Data
from dit_video.data.sources import NoData
from dit_video.data.transforms import ClipTransform
from dit_video.experiment import Experiment
from dit_video.run.folder import record
from dit_video.tasks.autoencode import Autoencode
from dit_video.training.intervals import Schedule
from dit_video.training.optimizer import AdamW
from dit_video.vae.wan_vae import WAN_VAE

# The most memory that was resident in this process: what getrusage calls so may be its parent's.
CHILD = """
import sys
from pathlib import Path

from dit_video.cli.main import main

for name in ("small", "large"):
    assert main(["import", name, "--codec=codec", f"--out=run_{name}"]) == 0
    lines = Path("/proc/self/status").read_text().splitlines()
    print("most", next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))
"""

# Of the process itself, whatever it imports: pieces that wait to be written, and room to compress them.
CONSTANT = 64 * 2**20


def save_wan(folder: Path, num_heads: int) -> list[int]:
    """A Wan as diffusers saves it, in shards; their sizes."""
    torch.manual_seed(0)
    network = WanTransformer3DModel(
        num_attention_heads=num_heads,
        attention_head_dim=64,
        ffn_dim=256 * num_heads,
        num_layers=8,
        text_dim=64,
        in_channels=16,
        out_channels=16,
    )
    network.save_pretrained(folder, max_shard_size="16MB")
    return [path.stat().st_size for path in folder.glob("*.safetensors")]


@pytest.mark.slow
def test_no_more_than_twice_the_largest_shard(tmp_path):
    """Beside what a model of a hundredth of the size takes: libraries, and the process itself."""
    data = Data(source=NoData(class_names=()), clips=ClipTransform(num_frames=5, size=(64, 64)), batch_size=1)
    task = Autoencode(vae=WAN_VAE)
    codec = Experiment(task=task, data=data, optimizer=AdamW(), schedule=Schedule(num_steps=1))
    record(codec, tmp_path / "codec", (), allow_change=False)
    save_wan(tmp_path / "small", 1)
    shards = save_wan(tmp_path / "large", 8)
    assert len(shards) > 7
    # As users have it, with one device and optimized programs.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        cwd=tmp_path,
        env=environment | {"JAX_PLATFORMS": "cpu"},
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    small, large = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("most"))
    assert large - small < 2 * max(shards) + CONSTANT
