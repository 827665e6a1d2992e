"""Every way of making a video, from one model: moving digits of which any frames, or a region, are known.

    dit-video train --config=experiments/quickstart.py:vae --workdir=runs/quickstart_vae
    dit-video encode --config=experiments/any_frames.py
    dit-video train --config=experiments/any_frames.py --workdir=runs/any_frames
    dit-video sample --workdir=runs/any_frames --video=seven.mp4 --extend=32 --out=longer.mp4

Clips of 21 frames at 32x32, six latent frames. The digits fly freely and bounce off the walls, so that a few frames
decide all others: what is made can be compared with the truth, frame by frame (`tools/any_frames_bench.py`).

`any_frames.py:first` (or last, ends, region) is a model of the same size and steps that is trained for that alone: the
price of one model for all is the difference.
"""

from dit_video import (
    EMA,
    ClipTransform,
    Data,
    Decay,
    Denoise,
    DiTConfig,
    Experiment,
    HeldOutError,
    Heun,
    KnownFrames,
    LatentCache,
    MovingDigits,
    Muon,
    Pattern,
    Schedule,
    TrainedCodec,
    VideoVAEConfig,
    rectified_flow,
)

# That of experiments/quickstart.py.
VAE = VideoVAEConfig(
    channels=64,
    multipliers=(1, 2),
    strides=((2, 4, 4), (2, 2, 2)),
    num_blocks=1,
    num_decoder_blocks=1,
    latent_channels=8,
)

# Latents are cached, so that nothing is encoded again in its place.
ALL = KnownFrames(in_place=0.0)


def get_config(arg: str = "all") -> Experiment:
    """`all`, or the one pattern that is known."""
    choices = {"all": ALL} | {str(pattern): only(pattern) for pattern in Pattern}
    if arg not in choices:
        raise ValueError(f"experiments/any_frames.py:{arg}: must be {', '.join(choices)}")
    return digits(choices[arg])


def only(pattern: Pattern) -> KnownFrames:
    """All clips have the same known."""
    none = dict.fromkeys(("one_level", "independent", *Pattern, "single"), 0.0)
    return KnownFrames(**{**none, str(pattern): 1.0}, in_place=0.0)


def digits(known: KnownFrames, *, steps: int = 1000) -> Experiment:
    return Experiment(
        task=Denoise(
            network=DiTConfig(hidden_size=192, depth=4, num_heads=3, patch_size=(1, 1, 1), shared_modulation=True),
            codec=TrainedCodec(vae=VAE, run="runs/quickstart_vae"),
            condition=None,
            objective=rectified_flow(),
            sampler=Heun(num_steps=20),
            known=known,
        ),
        data=Data(
            source=MovingDigits(
                directory="data/bouncing_digits", num_train=2000, num_held_out=64, size=32, num_frames=45
            ),
            clips=ClipTransform(num_frames=21, size=(32, 32)),
            batch_size=16,
            cache=LatentCache(directory="data/bouncing_latents"),
            num_threads=2,
        ),
        optimizer=Muon(learning_rate=5e-3, adam_learning_rate=1e-3, warmup_steps=50, decay=Decay.COSINE),
        ema=EMA(decay=0.995),
        schedule=Schedule(num_steps=steps, log_every=50, save_every=250),
        evaluators={"held_out_error": HeldOutError(every=500)},
    )
