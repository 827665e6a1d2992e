"""A class-conditional DiT on the latents of experiments/grid_vae.py: the class is the digit that is spoken.

    dit-video encode --config=experiments/grid_dit.py --clips_per_video=4
    dit-video train --config=experiments/grid_dit.py --workdir=runs/grid_dit
    dit-video evaluate --workdir=runs/grid_dit --num_clips=200

The data are made by the command in experiments/grid_vae.py.
"""

from dit_video.data.dataset import Data
from dit_video.data.sources import LatentCache, VideoSet
from dit_video.data.transforms import ClipTransform
from dit_video.diffusion.guidance import Guidance
from dit_video.diffusion.objective import rectified_flow
from dit_video.diffusion.sampler import Heun
from dit_video.dit.condition import ClassCondition
from dit_video.dit.dit import DiTConfig
from dit_video.evaluation.monitor import HeldOutError, Samples
from dit_video.experiment import Experiment
from dit_video.tasks.denoise import Denoise, TrainedCodec
from dit_video.training.loop import Schedule
from dit_video.training.optimizer import EMA, Decay, Muon
from dit_video.vae.video_vae import VideoVAEConfig

# As experiments/grid_vae.py trains it; opening the run checks that it is.
VAE = VideoVAEConfig(
    channels=64,
    multipliers=(1, 2),
    strides=((2, 4, 4), (2, 2, 2)),
    num_blocks=2,
    num_decoder_blocks=2,
)


def get_config(arg: str = "64") -> Experiment:
    """`arg` is the size of a frame: 64 or 128."""
    if arg not in ("64", "128"):
        raise ValueError(f"experiments/grid_dit.py:{arg}: must be 64 or 128")
    return dit(size=int(arg))


def dit(*, size: int = 64, steps: int = 2000) -> Experiment:
    return Experiment(
        task=Denoise(
            network=DiTConfig(hidden_size=256, depth=6, num_heads=4, patch_size=(1, 2, 2)),
            codec=TrainedCodec(vae=VAE, run="runs/grid_vae"),
            condition=ClassCondition(num_classes=10, drop_rate=0.1),
            objective=rectified_flow(),
            sampler=Heun(num_steps=25),
            guidance=Guidance(scale=1.5),
        ),
        data=Data(
            source=VideoSet(directory="data/grid"),
            clips=ClipTransform(num_frames=17, stride=2, size=(size, size)),
            batch_size=32,
            cache=LatentCache(directory="data/grid_latents"),
            num_threads=2,
        ),
        optimizer=Muon(learning_rate=5e-3, adam_learning_rate=1e-3, warmup_steps=100, decay=Decay.COSINE),
        ema=EMA(decay=0.998),
        schedule=Schedule(num_steps=steps, log_every=50, save_every=400),
        evaluators={"held-out error": HeldOutError(every=400), "samples": Samples(every=400)},
    )
