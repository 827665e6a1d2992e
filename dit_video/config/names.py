"""Names of components in records: a record says "TrainedCodec", and this table where that class lives now.

Files may move, names may not: what stands here once stays, and a class that is renamed keeps its old name here.
"""

from collections.abc import Mapping

# Of records as they are written now; old_records.py reads those from before.
FORMAT = 3

_ROOMS: Mapping[str, tuple[str, ...]] = {
    "experiment": ("Experiment",),
    "checkpoint.retention": ("Best", "Keep"),
    "data.dataset": ("Data",),
    "data.signals": ("CaptionBytes", "ClassLabel"),
    "data.sources": ("LatentCache", "MovingDigits", "NoData", "TFDSSet", "TextSet", "VideoSet"),
    "data.text_cache": ("TextCache",),
    "data.text_tokens": ("TextPrompt", "TextTokens"),
    "data.tokenizers": ("BytePairs", "Bytes", "Characters"),
    "data.transforms": ("ClipTransform",),
    "diffusion.guidance": ("Guidance",),
    "diffusion.masked": ("Absorbing", "CosineMasking", "LogLinear"),
    "diffusion.multistep": ("DPMSolver", "UniPC"),
    "diffusion.objective": ("Gaussian", "LogitNormal", "MinSNR", "Uniform", "UniformLevels", "Unweighted"),
    "diffusion.path": (
        "ConstantShift", "Cosine", "DiscreteBetas", "ExponentialShift", "Linear", "LinearBeta", "TokenShift",
    ),
    "diffusion.prediction": ("Epsilon", "V", "Velocity", "X0"),
    "diffusion.sampler": ("Ancestral", "DDIM", "Euler", "Heun"),
    "diffusion.timestep_spacing": ("Leading", "Linspace", "Trailing"),
    "diffusion.variance": ("LearnedVariance",),
    "diffusion.unmasking": (
        "Confidence", "EntropyBound", "RandomOrder", "Remasking", "Spread", "Threshold", "Unmasking",
    ),
    "distributed.sharding": ("MeshShape",),
    "dit.condition": ("ClassCondition", "EmbeddedText", "TextCondition"),
    "dit.dit": ("DiTConfig", "PublishedDiTConfig"),
    "dit.known_frames": ("AsChannels", "LevelZero"),
    "dit.latte": ("LatteConfig",),
    "dit.mmdit": ("MMDiTConfig", "PositionTable"),
    "dit.text_transformer": ("TextTransformerConfig",),
    "dit.wan": ("WanConfig",),
    "encoders.clip_image": ("CLIPVisionConfig",),
    "encoders.clip_text": ("CLIPTextConfig",),
    "encoders.image": ("PretrainedImage",),
    "encoders.t5": ("T5Config",),
    "encoders.text": ("FrozenCLIP", "FrozenT5", "PretrainedText", "ZeroTokens"),
    "evaluation.features": ("FromFile",),
    "evaluation.fvd": ("FVD",),
    "evaluation.i3d": ("I3DLogits",),
    "evaluation.evaluators": ("HeldOutError", "Reconstruction", "Samples"),
    "evaluation.text": ("BitsPerByte", "SampledText"),
    "tasks.autoencode": ("Autoencode",),
    "tasks.factorization": ("Autoregressive", "Blocks", "Masked"),
    "tasks.latent_diffusion": ("Denoise",),
    "tasks.known_frames": ("FirstFrame",),
    "tasks.text": ("LanguageModel",),
    "training.fault_policy": ("Faults", "Note", "RollBack", "Skip", "Spike", "Stop"),
    "training.optimizer": ("EMA", "AdamW", "Group", "Muon"),
    "training.intervals": ("Schedule",),
    "vae.losses": ("AutoencodeLoss",),
    "vae.autoencoder_kl": ("AutoencoderKLConfig",),
    "vae.cogvideox_vae": ("CogVideoXVAEConfig",),
    "vae.trained_codec": ("TrainedCodec",),
    "vae.video_vae": ("VideoVAEConfig",),
    "vae.wan_vae": ("WanVAEConfig",),
}  # fmt: skip

# The module of each name.
MODULES: Mapping[str, str] = {name: f"dit_video.{room}" for room, names in _ROOMS.items() for name in names}
