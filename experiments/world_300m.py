"""A world of 300 million parameters at 256x256, for one node of accelerators; not trained here.

    dit-video data record ENV --out=data/world --steps=2000000 --size=256
    dit-video train --config=experiments/world_300m.py:vae --workdir=runs/world_vae
    dit-video encode --config=experiments/world_300m.py --clips_per_video=8
    dit-video train --config=experiments/world_300m.py --workdir=runs/world
    dit-video plan --config=experiments/world_300m.py --target=h100:1x1 --program=frame

Frames are 256 tokens and see the 15 before them; `experiments/world_corridor.py` is the small one of the same kind.
"""

from dit_video import (
    EMA,
    ActionResponse,
    Actions,
    AdamW,
    Autoencode,
    CausalFrames,
    ClipTransform,
    Data,
    Decay,
    Denoise,
    DiscreteActions,
    DiTConfig,
    Drift,
    Euler,
    Experiment,
    HeldOutError,
    LatentCache,
    MeshShape,
    PastFrames,
    Precision,
    Reconstruction,
    Remat,
    Schedule,
    TrainedCodec,
    VideoSet,
    VideoVAEConfig,
    diffusion_forcing,
    rectified_flow,
)

# Those of your world, as `dit-video data inspect` shows them.
ACTIONS = ("noop", "forward", "back", "turn_left", "turn_right")
SIZE, FRAMES, WINDOW = (256, 256), 20, 16
# A frame is a latent frame, so that the next one answers to the key that was pressed.
VAE = VideoVAEConfig(
    channels=128,
    multipliers=(1, 2, 4),
    strides=((1, 2, 2), (1, 2, 2), (1, 2, 2)),
    num_blocks=2,
    num_decoder_blocks=3,
    latent_channels=16,
)


def get_config(arg: str = "world") -> Experiment:
    """`world` or `vae`."""
    runs = {"world": world, "vae": vae}
    if arg not in runs:
        raise ValueError(f"experiments/world_300m.py:{arg}: must be one of {', '.join(runs)}")
    return runs[arg]()


def vae() -> Experiment:
    return Experiment(
        task=Autoencode(vae=VAE, precision=Precision.BFLOAT16),
        data=recorded(batch_size=32, num_frames=9),
        optimizer=AdamW(learning_rate=1e-4, warmup_steps=1000, decay=Decay.COSINE),
        ema=EMA(decay=0.999),
        schedule=Schedule(num_steps=100_000, log_every=50, save_every=2000),
        mesh=MeshShape(data=-1),
        evaluators={"reconstruction": Reconstruction(every=5000)},
    )


def world() -> Experiment:
    return Experiment(
        task=Denoise(
            network=DiTConfig(
                hidden_size=1024,
                depth=24,
                num_heads=16,
                patch_size=(1, 2, 2),
                shared_modulation=True,
                causal=CausalFrames(window=WINDOW),
                remat=Remat.FULL,
            ),
            codec=TrainedCodec(vae=VAE, run="runs/world_vae"),
            condition=DiscreteActions(num_actions=len(ACTIONS), drop_rate=0.1),
            objective=diffusion_forcing(rectified_flow()),
            sampler=Euler(num_steps=4),
            past=PastFrames(noise=0.05),
            precision=Precision.BFLOAT16,
        ),
        data=recorded(batch_size=64, num_frames=FRAMES, cache=LatentCache(directory="data/world_latents")),
        optimizer=AdamW(learning_rate=2e-4, warmup_steps=2000, decay=Decay.COSINE),
        ema=EMA(decay=0.9999),
        schedule=Schedule(num_steps=200_000, log_every=50, save_every=2000),
        mesh=MeshShape(data=1, fsdp=-1),
        evaluators={
            "held_out_error": HeldOutError(every=5000),
            "response": ActionResponse(every=20_000, num_known=FRAMES - WINDOW, horizons=(1, 4, 16)),
            "drift": Drift(every=50_000),
        },
    )


def recorded(*, batch_size: int, num_frames: int, cache: LatentCache | None = None) -> Data:
    return Data(
        source=VideoSet(directory="data/world"),
        clips=ClipTransform(num_frames=num_frames, size=SIZE),
        batch_size=batch_size,
        cache=cache,
        signals={} if cache is None else {"action": Actions(names=ACTIONS, num_frames=num_frames)},
    )
