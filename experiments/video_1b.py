r"""Text to video, 1.4 billion parameters, 480p: 81 frames of 480x832, 32,760 tokens of latents.

    dit-video data ingest VIDEOS.tar --labels captions.tsv --key key --caption caption --out data/captioned_videos
    dit-video train --config=experiments/video_1b.py:vae --workdir=runs/video_vae
    dit-video encode --config=experiments/video_1b.py
    dit-video plan --config=experiments/video_1b.py --target='v6e:16x16*4'
    dit-video train --config=experiments/video_1b.py --workdir=runs/video_1b
    dit-video sample --workdir=runs/video_1b --text="a cat asleep on a piano" --num_clips=4 --out=cat.mp4

The network has the width, depth and heads of Wan 2.1's 1.3B (2503.20314): cross-attention to text, one modulation for
all blocks and a vector of each block's own, and an MLP of as many parameters. Unlike Wan's it is gated (SwiGLU), and a
small transformer that learns along with it reads captions byte by byte, so there is no text model to download.
`dit-video show --config=experiments/video_1b.py` counts 1,383,874,624 parameters, 42,713,856 of them the text
encoder's.

The mesh suits v6e:16x16*4, v5p:8x8x4 and h100:16x8: `context` splits the tokens of a clip and stays within a node,
it and `fsdp` share out the parameters, `data` takes what is left, slices included. For other devices change it with
--config.mesh.fsdp and --config.mesh.context. Times are logit-normal and shifted by the number of positions, as far as
TokenShift's limit of 5; Wan shifts 480p by 3: --config.task.objective.shift.limit=3.

`video_1b.py:mixed` is the same network on videos of many lengths and aspects and on pictures, a set that is made with
`data ingest --images`, with any frames or a region known: one set of weights for every way of making a video.

It has not been trained: no such devices were available. The same functions at the smallest size, on moving digits, go
the whole way from captions to pictures on a laptop:

    dit-video train --config=experiments/video_1b.py:tiny_vae --workdir=runs/video_tiny_vae
    dit-video encode --config=experiments/video_1b.py:tiny
    dit-video train --config=experiments/video_1b.py:tiny --workdir=runs/video_tiny
"""

import dataclasses

from dit_video import (
    EMA,
    AdamW,
    Autoencode,
    AutoencodeLoss,
    BatchShape,
    CaptionBytes,
    ClipTransform,
    Data,
    Denoise,
    DiTConfig,
    Euler,
    Experiment,
    Guidance,
    HeldOutError,
    KnownFrames,
    LatentCache,
    MeshShape,
    MovingDigits,
    Precision,
    Reconstruction,
    ReconstructionLoss,
    Remat,
    Samples,
    Schedule,
    TextCondition,
    TrainedCodec,
    VideoSet,
    VideoVAEConfig,
    rectified_flow,
)

# 4x8x8, 16 channels.
VAE = VideoVAEConfig()
TINY_VAE = VideoVAEConfig(
    channels=8,
    multipliers=(1, 1),
    strides=((2, 4, 4), (2, 2, 2)),
    num_blocks=1,
    num_decoder_blocks=1,
    latent_channels=4,
)


# Lengths and aspects of one area, and pictures of it. Work is equal in multiples of 256 clips, which all of the meshes
# below split; a step on pictures has the most tokens, so they are fewer than would be equal.
SHAPES = (
    BatchShape(num_frames=81, size=(480, 832)),
    BatchShape(num_frames=81, size=(832, 480)),
    BatchShape(num_frames=81, size=(624, 640)),
    BatchShape(num_frames=53, size=(480, 832)),
    BatchShape(num_frames=33, size=(480, 832)),
    BatchShape(num_frames=1, size=(480, 832), batch_size=5120),
    BatchShape(num_frames=1, size=(832, 480), batch_size=5120),
    BatchShape(num_frames=1, size=(624, 640), batch_size=5120),
)


def get_config(arg: str = "dit") -> Experiment:
    """`dit`, on clips of many shapes with any frames known `mixed`, their codec `vae`, or small enough to try: `tiny`
    and `tiny_vae`.
    """
    runs = {"dit": dit, "mixed": mixed, "vae": vae, "tiny": tiny, "tiny_vae": tiny_vae}
    if arg not in runs:
        raise ValueError(f"experiments/video_1b.py:{arg}: must be one of {', '.join(runs)}")
    return runs[arg]()


def dit(known: KnownFrames | None = None) -> Experiment:
    return text_to_video(
        network=DiTConfig(
            hidden_size=1536, depth=30, num_heads=12, mlp_ratio=8960 / 1536, shared_modulation=True, remat=Remat.FULL
        ),
        text=TextCondition(hidden_size=768, depth=6, num_heads=6),
        codec=TrainedCodec(vae=VAE, run="runs/video_vae"),
        data=Data(
            source=VideoSet(directory="data/captioned_videos"),
            clips=ClipTransform(num_frames=81, size=(480, 832)),
            batch_size=256,
            cache=LatentCache(directory="data/captioned_videos_latents"),
            signals={"caption": CaptionBytes(num_bytes=1024)},
        ),
        mesh=MeshShape(data=-1, fsdp=16, context=4),
        steps=100_000,
        every=5000,
        sampling_steps=50,
        known=known,
    )


def mixed() -> Experiment:
    """Videos of many lengths and aspects, and pictures; any frames, or a region, are known (docs/modes.md)."""
    # Latents are cached, so that nothing is encoded again in its place.
    one = dit(KnownFrames(in_place=0.0))
    return dataclasses.replace(
        one,
        data=dataclasses.replace(
            one.data, shapes=SHAPES, batch_multiple=256, cache=LatentCache(directory="data/captioned_mixed_latents")
        ),
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


def vae() -> Experiment:
    """Learns from crops: nothing in the codec sees farther than its convolutions."""
    return autoencode(
        vae=VAE,
        data=Data(
            source=VideoSet(directory="data/captioned_videos"),
            clips=ClipTransform(num_frames=17, size=(256, 256), random_crop=True),
            batch_size=256,
        ),
        steps=100_000,
        every=5000,
    )


def tiny_vae() -> Experiment:
    return autoencode(vae=TINY_VAE, data=digits(batch_size=16), steps=20, every=20)


def autoencode(*, vae: VideoVAEConfig, data: Data, steps: int, every: int) -> Experiment:
    return Experiment(
        task=Autoencode(vae=vae, losses=AutoencodeLoss(reconstruction=ReconstructionLoss.GAUSSIAN, kl=1e-3)),
        data=data,
        optimizer=AdamW(learning_rate=1e-4, warmup_steps=1000),
        ema=EMA(decay=0.999),
        schedule=Schedule(num_steps=steps, log_every=10, save_every=every),
        evaluators={"reconstruction": Reconstruction(every=every)},
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
    known: KnownFrames | None = None,
) -> Experiment:
    return Experiment(
        task=Denoise(
            network=network,
            codec=codec,
            condition=text,
            objective=rectified_flow(),
            sampler=Euler(num_steps=sampling_steps),
            guidance=Guidance(scale=5.0),
            known=known,
            precision=Precision.BFLOAT16,
        ),
        data=data,
        optimizer=AdamW(learning_rate=1e-4, warmup_steps=1000),
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
