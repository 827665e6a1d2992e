r"""A video VAE on the GRID corpus (one speaker, 800 training and 200 held-out videos), 17 frames of 64x64 at stride 2.

    dit-video data ingest ../shared/data/grid_av/grid_s1_train_128.tar ../shared/data/grid_av/grid_s1_test_128.tar \
        --labels ../shared/data/grid_av/grid_labels.tsv --key key --label digit --caption caption --split split \
        --out data/grid
    dit-video train --config=experiments/grid_vae.py --workdir=runs/grid_vae

GRID (Cooke, Barker, Cunningham, Shao 2006; CC BY 4.0), cropped and scaled to 128x128.
"""

from dit_video.data.dataset import Data
from dit_video.data.sources import VideoSet
from dit_video.data.transforms import ClipTransform
from dit_video.evaluation.monitor import Reconstruction
from dit_video.experiment import Experiment
from dit_video.tasks.autoencode import Autoencode
from dit_video.training.loop import Schedule
from dit_video.training.optimizer import EMA, Decay, Muon
from dit_video.vae.adversary import AutoencodeLoss
from dit_video.vae.adversary import Reconstruction as ReconstructionLoss
from dit_video.vae.video_vae import VideoVAEConfig


def get_config(arg: str = "64") -> Experiment:
    """`arg` is the size of a frame: 64 or 128."""
    if arg not in ("64", "128"):
        raise ValueError(f"experiments/grid_vae.py:{arg}: must be 64 or 128")
    return vae(size=int(arg))


def vae(*, size: int = 64, steps: int = 10000) -> Experiment:
    return Experiment(
        task=Autoencode(
            vae=VideoVAEConfig(
                channels=64,
                multipliers=(1, 2),
                strides=((2, 4, 4), (2, 2, 2)),
                num_blocks=2,
                num_decoder_blocks=2,
            ),
            losses=AutoencodeLoss(reconstruction=ReconstructionLoss.GAUSSIAN, kl=1e-3),
        ),
        data=Data(
            source=VideoSet(directory="data/grid"),
            clips=ClipTransform(num_frames=17, stride=2, size=(size, size)),
            batch_size=4,
            num_threads=2,
        ),
        optimizer=Muon(learning_rate=0.02, adam_learning_rate=2e-3, warmup_steps=100, decay=Decay.COSINE),
        ema=EMA(decay=0.998),
        schedule=Schedule(num_steps=steps, log_every=100, save_every=1000),
        evaluators={"reconstruction": Reconstruction(every=1000, num_clips=64, batch_size=8)},
    )
