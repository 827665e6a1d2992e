r"""Text to video, 12.8 billion parameters, 480p: 81 frames of 480x832, 32,760 tokens of latents.

    dit-video plan --config=experiments/video_14b.py --target='v6e:16x16*4'
    dit-video train --config=experiments/video_14b.py --workdir=runs/video_14b
    dit-video sample --workdir=runs/video_14b --text="a cat asleep on a piano" --num_clips=4 --out=cat.mp4

Data, codec and latents are those of experiments/video_1b.py.

The network has the width, depth and heads of Wan 2.1's 14B (2503.20314): cross-attention to text, one modulation for
all blocks and a vector of each block's own, and an MLP of as many parameters. Unlike Wan's it is gated (SwiGLU), and a
small transformer that learns along with it reads captions byte by byte, so there is no text model to download.
`dit-video show --config=experiments/video_14b.py` counts 12,767,153,728 parameters, 152,175,104 of them the text
encoder's. They are fewer than Wan's because keys and values are made from the text encoder's narrower tokens.

The mesh suits v6e:16x16*4, v5p:8x8x4 and h100:16x8: `context` splits the tokens of a clip and stays within a node,
it and `fsdp` share out the parameters, `data` takes what is left, slices included. For other devices change it with
--config.mesh.fsdp and --config.mesh.context. Times are logit-normal and shifted by the number of positions, as far as
TokenShift's limit of 5; Wan shifts 480p by 3: --config.task.objective.shift.limit=3.

It has not been trained: no such devices were available. `experiments/video_14b.py:tiny` is the same at the smallest
size, on the latents of `experiments/video_1b.py:tiny`.
"""

from dit_video import (
    EMA,
    AdamW,
    CaptionBytes,
    ClipTransform,
    Data,
    Denoise,
    DiTConfig,
    Euler,
    Experiment,
    Guidance,
    HeldOutError,
    LatentCache,
    MeshShape,
    MovingDigits,
    Precision,
    Remat,
    Samples,
    Schedule,
    TextCondition,
    TrainedCodec,
    VideoSet,
    VideoVAEConfig,
    rectified_flow,
)

# As experiments/video_1b.py trains them; opening their runs checks that they are.
VAE = VideoVAEConfig()
TINY_VAE = VideoVAEConfig(
    channels=8,
    multipliers=(1, 1),
    strides=((2, 4, 4), (2, 2, 2)),
    num_blocks=1,
    num_decoder_blocks=1,
    latent_channels=4,
)


def get_config(arg: str = "dit") -> Experiment:
    """`dit`, or `tiny`, small enough to try."""
    runs = {"dit": dit, "tiny": tiny}
    if arg not in runs:
        raise ValueError(f"experiments/video_14b.py:{arg}: must be {' or '.join(runs)}")
    return runs[arg]()


def dit() -> Experiment:
    return text_to_video(
        network=DiTConfig(
            hidden_size=5120, depth=40, num_heads=40, mlp_ratio=13824 / 5120, shared_modulation=True, remat=Remat.FULL
        ),
        text=TextCondition(hidden_size=1024, depth=12, num_heads=8),
        codec=TrainedCodec(vae=VAE, run="runs/video_vae"),
        data=Data(
            source=VideoSet(directory="data/captioned_videos"),
            clips=ClipTransform(num_frames=81, size=(480, 832)),
            batch_size=256,
            cache=LatentCache(directory="data/captioned_videos_latents"),
            signals={"caption": CaptionBytes(num_bytes=1024)},
        ),
        mesh=MeshShape(data=-1, fsdp=16, context=8),
        steps=100_000,
        every=5000,
        sampling_steps=50,
    )


def tiny() -> Experiment:
    """The same way at the smallest size."""
    return text_to_video(
        network=DiTConfig(hidden_size=32, depth=2, num_heads=2, shared_modulation=True, remat=Remat.FULL),
        text=TextCondition(hidden_size=32, depth=1, num_heads=2),
        codec=TrainedCodec(vae=TINY_VAE, run="runs/video_tiny_vae"),
        data=digits(batch_size=16, cache=LatentCache(directory="data/tiny_digits_latents")),
        mesh=MeshShape(),
        steps=20,
        every=20,
        sampling_steps=2,
    )


def text_to_video(
    *,
    network: DiTConfig,
    text: TextCondition,
    codec: TrainedCodec,
    data: Data,
    mesh: MeshShape,
    steps: int,
    every: int,
    sampling_steps: int,
) -> Experiment:
    return Experiment(
        task=Denoise(
            network=network,
            codec=codec,
            condition=text,
            objective=rectified_flow(),
            sampler=Euler(num_steps=sampling_steps),
            guidance=Guidance(scale=5.0),
            precision=Precision.BFLOAT16,
        ),
        data=data,
        optimizer=AdamW(learning_rate=5e-5, warmup_steps=1000),
        ema=EMA(decay=0.9999),
        schedule=Schedule(num_steps=steps, log_every=10, save_every=every),
        evaluators={"held_out_error": HeldOutError(every=every), "samples": Samples(every=every)},
        mesh=mesh,
    )


def digits(*, batch_size: int, cache: LatentCache | None = None) -> Data:
    return Data(
        source=MovingDigits(
            directory="data/tiny_digits", num_train=64, num_held_out=64, size=16, num_frames=9, digit_size=10
        ),
        clips=ClipTransform(num_frames=9, size=(16, 16)),
        batch_size=batch_size,
        cache=cache,
        signals={"caption": CaptionBytes(num_bytes=40)},
        num_threads=2,
    )
