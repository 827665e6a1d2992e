"""Image to video at the smallest size: a DiT continues the first frame of a clip of moving digits.

    dit-video train --config=experiments/quickstart.py:vae --workdir=runs/quickstart_vae
    dit-video encode --config=experiments/image.py
    dit-video train --config=experiments/image.py --workdir=runs/image
    dit-video sample --workdir=runs/image --image=seven.png --out=seven.mp4

The codec, the clips and the latents are those of experiments/quickstart.py. The network sees the first latent frame
without noise, at noise level 0 (as Wan 2.2 TI2V does), and has no other condition. For videos of your own:
`dit-video new mine.py --from=image --data=data/mine`. It was not trained for a result of record.
"""

from dit_video import (
    EMA,
    ClipTransform,
    Data,
    Decay,
    Denoise,
    DiTConfig,
    Experiment,
    FirstFrame,
    HeldOutError,
    Heun,
    LatentCache,
    LevelZero,
    MovingDigits,
    Muon,
    Samples,
    Schedule,
    TrainedCodec,
    VideoVAEConfig,
    rectified_flow,
)

# As experiments/quickstart.py:vae trains it; opening the run checks that it is.
VAE = VideoVAEConfig(
    channels=64,
    multipliers=(1, 2),
    strides=((2, 4, 4), (2, 2, 2)),
    num_blocks=1,
    num_decoder_blocks=1,
    latent_channels=8,
)


def get_config(arg: str = "") -> Experiment:
    """Nothing stands after a colon."""
    if arg:
        raise ValueError(f"experiments/image.py:{arg}: takes no argument")
    return Experiment(
        task=Denoise(
            network=DiTConfig(hidden_size=192, depth=4, num_heads=3, patch_size=(1, 1, 1)),
            codec=TrainedCodec(vae=VAE, run="runs/quickstart_vae"),
            condition=None,
            known=FirstFrame(shown=LevelZero()),
            objective=rectified_flow(),
            sampler=Heun(num_steps=20),
        ),
        data=Data(
            source=MovingDigits(
                directory="data/moving_digits", num_train=4000, num_held_out=500, size=32, num_frames=9
            ),
            clips=ClipTransform(num_frames=9, size=(32, 32)),
            batch_size=32,
            cache=LatentCache(directory="data/quickstart_latents"),
            num_threads=2,
        ),
        optimizer=Muon(learning_rate=5e-3, adam_learning_rate=1e-3, warmup_steps=50, decay=Decay.COSINE),
        ema=EMA(decay=0.995),
        schedule=Schedule(num_steps=600, log_every=50, save_every=300),
        evaluators={"held_out_error": HeldOutError(every=300), "samples": Samples(every=300)},
    )
