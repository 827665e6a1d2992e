"""Every way of making a video, from one model, on the GRID corpus: any frames, or a region, of a clip are known.

    dit-video encode --config=experiments/grid_any_frames.py --clips_per_video=4
    dit-video train --config=experiments/grid_any_frames.py --workdir=runs/grid_any_frames
    dit-video evaluate run --workdir=runs/grid_any_frames --num_clips=128
    dit-video sample --workdir=runs/grid_any_frames --image=face.png --label=two --out=two.mp4
    dit-video sample --workdir=runs/grid_any_frames --video=two.mp4 --extend=16 --out=longer.mp4

The network, clips and codec are those of experiments/grid_dit.py, with one modulation for all blocks, as the levels of
cells want it; the class is the digit that is spoken. The data are made by the command in experiments/grid_vae.py.

It has not been trained. `grid_any_frames.py:tiny` is the same on a network of 32 features.
"""

from dit_video import (
    EMA,
    ClassCondition,
    ClipTransform,
    Data,
    Decay,
    Denoise,
    DiTConfig,
    Experiment,
    Guidance,
    HeldOutError,
    Heun,
    KnownFrames,
    LatentCache,
    Muon,
    Samples,
    Schedule,
    TrainedCodec,
    VideoSet,
    VideoVAEConfig,
    rectified_flow,
)

# As experiments/grid_vae.py trains it; opening the run checks that it is.
VAE = VideoVAEConfig(
    channels=64,
    multipliers=(1, 2),
    strides=((2, 4, 4), (2, 2, 2)),
    num_blocks=2,
    num_decoder_blocks=2,
)


def get_config(arg: str = "") -> Experiment:
    """Whole, or small enough to try: `tiny`."""
    sizes = {"": DiTConfig(hidden_size=256, depth=6, num_heads=4, patch_size=(1, 2, 2), shared_modulation=True)}
    sizes["tiny"] = DiTConfig(hidden_size=32, depth=2, num_heads=2, patch_size=(1, 2, 2), shared_modulation=True)
    if arg not in sizes:
        raise ValueError(f"experiments/grid_any_frames.py:{arg}: must be tiny, or left out")
    return any_frames(sizes[arg])


def any_frames(network: DiTConfig, *, steps: int = 2000) -> Experiment:
    return Experiment(
        task=Denoise(
            network=network,
            codec=TrainedCodec(vae=VAE, run="runs/grid_vae"),
            condition=ClassCondition(num_classes=10, drop_rate=0.1),
            objective=rectified_flow(),
            sampler=Heun(num_steps=25),
            guidance=Guidance(scale=1.5),
            # Latents are cached, so that nothing is encoded again in its place.
            known=KnownFrames(in_place=0.0),
        ),
        data=Data(
            source=VideoSet(directory="data/grid"),
            clips=ClipTransform(num_frames=17, stride=2, size=(64, 64)),
            batch_size=32,
            cache=LatentCache(directory="data/grid_latents"),
            num_threads=2,
        ),
        optimizer=Muon(learning_rate=5e-3, adam_learning_rate=1e-3, warmup_steps=100, decay=Decay.COSINE),
        ema=EMA(decay=0.998),
        schedule=Schedule(num_steps=steps, log_every=50, save_every=400),
        evaluators={"held_out_error": HeldOutError(every=400), "samples": Samples(every=400)},
    )
