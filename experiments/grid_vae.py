r"""A video VAE on the GRID corpus (one speaker, 800 training and 200 held-out videos), 17 frames of 64x64 at stride 2.

    dit-video data ingest ../shared/data/grid_av/grid_s1_train_128.tar ../shared/data/grid_av/grid_s1_test_128.tar \
        --labels ../shared/data/grid_av/grid_labels.tsv --key key --label digit --caption caption --split split \
        --out data/grid
    dit-video train --config=experiments/grid_vae.py --workdir=runs/grid_vae

GRID (Cooke, Barker, Cunningham, Shao 2006; CC BY 4.0), cropped and scaled to 128x128.

Measured, once, on two CPU cores that other programs shared: 55 minutes, 16 clips/s at best. Held-out PSNR of the
averaged weights over 64 clips (one seed):

    step       1000    2000    3000    4000    5000    6000    8000   10000
    PSNR, dB  36.21   37.86   38.56   39.01   39.35   39.61   39.93   40.01
    SSIM     0.9692  0.9768  0.9796  0.9812  0.9822  0.9831  0.9839  0.9841

Of the same clips, their own temporal mean frame scores 38.47 dB, for in 17 frames little moves but a mouth, and the
mean frame of the training set 22.43 dB. So this is 17.6 dB above a codec that ignores its input, and 1.5 dB above one
that knows each clip's mean frame and nothing else; 6 dB above that (44.5 dB) is out of reach of an hour on two cores:
the second half of the run gave 0.7 dB.
"""

from dit_video import (
    EMA,
    Autoencode,
    AutoencodeLoss,
    ClipTransform,
    Data,
    Decay,
    Experiment,
    Muon,
    Reconstruction,
    ReconstructionLoss,
    Schedule,
    VideoSet,
    VideoVAEConfig,
)


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
