"""A world that answers to keys, on two CPU cores: a first-person corridor at 64x64, its codec and its network.

    dit-video data record corridor --out=data/corridor --steps=150000
    dit-video train --config=experiments/world_corridor.py:vae --workdir=runs/corridor_vae
    dit-video encode --config=experiments/world_corridor.py --clips_per_video=12
    dit-video train --config=experiments/world_corridor.py --workdir=runs/corridor
    dit-video play --workdir=runs/corridor

The codec makes 8x8 latents of each frame, the network 16 tokens of these. Frames are block-causal with a window of 16,
and have a noise level each (diffusion forcing); `:teacher` trains beside a clean copy instead. docs/worlds.md has what
was measured.
"""

from dit_video import (
    EMA,
    ActionResponse,
    Actions,
    Autoencode,
    AutoencodeLoss,
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
    Muon,
    PastFrames,
    Reconstruction,
    ReconstructionLoss,
    Schedule,
    TrainedCodec,
    Turning,
    VideoSet,
    VideoVAEConfig,
    diffusion_forcing,
    rectified_flow,
)

ACTIONS = ("noop", "forward", "back", "turn_left", "turn_right")
# Of a clip: four that are known, and a horizon of 16.
FRAMES, WINDOW = 20, 16
VAE = VideoVAEConfig(
    channels=48,
    multipliers=(1, 2),
    strides=((1, 4, 4), (1, 2, 2)),
    num_blocks=1,
    num_decoder_blocks=1,
    latent_channels=8,
)


def get_config(arg: str = "world") -> Experiment:
    """`vae`, `world` or `teacher`."""
    runs = {"vae": vae, "world": world, "teacher": lambda: world(copy_noise=0.1)}
    if arg not in runs:
        raise ValueError(f"experiments/world_corridor.py:{arg}: must be one of {', '.join(runs)}")
    return runs[arg]()


def vae(*, steps: int = 1500) -> Experiment:
    return Experiment(
        task=Autoencode(vae=VAE, losses=AutoencodeLoss(reconstruction=ReconstructionLoss.GAUSSIAN, kl=1e-3)),
        data=corridor(batch_size=4, num_frames=5),
        optimizer=Muon(learning_rate=0.02, adam_learning_rate=2e-3, warmup_steps=50, decay=Decay.COSINE),
        ema=EMA(decay=0.99),
        schedule=Schedule(num_steps=steps, log_every=50, save_every=500),
        evaluators={"reconstruction": Reconstruction(every=500)},
    )


def world(*, steps: int = 3000, copy_noise: float | None = None) -> Experiment:
    """Args:
    copy_noise: of teacher forcing; None for diffusion forcing.
    """
    return Experiment(
        task=Denoise(
            network=DiTConfig(
                hidden_size=128, depth=6, num_heads=4, patch_size=(1, 2, 2), causal=CausalFrames(window=WINDOW)
            ),
            codec=TrainedCodec(vae=VAE, run="runs/corridor_vae"),
            condition=DiscreteActions(num_actions=len(ACTIONS), drop_rate=0.1),
            objective=diffusion_forcing(rectified_flow()),
            sampler=Euler(num_steps=4),
            past=PastFrames(noise=0.05, copy_noise=copy_noise),
        ),
        data=corridor(batch_size=16, num_frames=FRAMES, cache=LatentCache(directory="data/corridor_latents")),
        optimizer=Muon(learning_rate=0.01, adam_learning_rate=1e-3, warmup_steps=50, decay=Decay.COSINE),
        ema=EMA(decay=0.995),
        schedule=Schedule(num_steps=steps, log_every=50, save_every=500),
        evaluators={
            "held_out_error": HeldOutError(every=500),
            "response": ActionResponse(every=1500, num_known=FRAMES - WINDOW, horizons=(1, 4, 16)),
            "drift": Drift(every=3000),
            "turning": Turning(every=3000, left=ACTIONS.index("turn_left"), right=ACTIONS.index("turn_right")),
        },
    )


def corridor(*, batch_size: int, num_frames: int, cache: LatentCache | None = None) -> Data:
    return Data(
        source=VideoSet(directory="data/corridor"),
        clips=ClipTransform(num_frames=num_frames, size=(64, 64)),
        batch_size=batch_size,
        cache=cache,
        signals={} if cache is None else {"action": Actions(names=ACTIONS, num_frames=num_frames)},
        num_threads=2,
    )
