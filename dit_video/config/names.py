"""Names of components in records, and all public names: a record says "TrainedCodec", this table where it lives now.

Files may move, names may not: what stands here once stays, and a class that is renamed keeps its old name here. What
stands here can be imported as `from dit_video import NAME`; `python -m tools.public_names` tells type checkers so.
"""

from collections.abc import Mapping

# Of records as they are written now; old_records.py reads those from before.
FORMAT = 3

_ROOMS: Mapping[str, tuple[str, ...]] = {
    "experiment": ("Experiment",),
    "checkpoint.retention": ("Best", "Keep"),
    "data.dataset": ("Data",),
    "data.signals": ("Actions", "CaptionBytes", "ClassLabel"),
    "data.sources": ("LatentCache", "MovingDigits", "NoData", "TFDSSet", "TextSet", "VideoSet"),
    "data.text_cache": ("TextCache",),
    "data.text_tokens": ("TextPrompt", "TextTokens"),
    "data.tokenizers": ("BytePairs", "Bytes", "Characters"),
    "data.shapes": ("BatchShape",),
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
    "diffusion.scheduling_matrix": ("FrameByFrame", "Pyramid", "WholeClip"),
    "diffusion.timestep_spacing": ("Leading", "Linspace", "Trailing"),
    "diffusion.variance": ("LearnedVariance",),
    "diffusion.unmasking": (
        "Confidence", "EntropyBound", "RandomOrder", "Remasking", "Spread", "Threshold", "Unmasking",
    ),
    "distributed.sharding": ("MeshShape",),
    "dit.action_condition": ("ContinuousActions", "DiscreteActions"),
    "dit.condition": ("ClassCondition", "EmbeddedText", "TextCondition"),
    "dit.dit": ("DiTConfig", "PublishedDiTConfig"),
    "dit.known_frames": ("AsChannels", "LevelZero"),
    "dit.latte": ("LatteConfig",),
    "dit.mmdit": ("MMDiTConfig", "PositionTable"),
    "dit.network": ("CausalFrames",),
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
    "evaluation.text_judge": ("TrainedJudge",),
    "evaluation.turning": ("Turning",),
    "evaluation.worlds": ("ActionResponse", "Drift"),
    "nn.positions": ("NTKAware",),
    "tasks.autoencode": ("Autoencode",),
    "tasks.factorization": ("Autoregressive", "Blocks", "Masked"),
    "tasks.latent_diffusion": ("Denoise",),
    "tasks.known_frames": ("FirstFrame", "KnownFrames"),
    "tasks.past_frames": ("PastFrames",),
    "tasks.text": ("LanguageModel",),
    "training.fault_policy": ("Faults", "Note", "RollBack", "Skip", "Spike", "Stop"),
    "training.optimizer": ("EMA", "AdamW", "Group", "Muon"),
    "training.intervals": ("Schedule",),
    "training.trackers": ("TensorBoard", "WeightsAndBiases"),
    "vae.losses": ("AutoencodeLoss",),
    "vae.autoencoder_kl": ("AutoencoderKLConfig",),
    "vae.cogvideox_vae": ("CogVideoXVAEConfig",),
    "vae.trained_codec": ("TrainedCodec",),
    "vae.video_vae": ("VideoVAEConfig",),
    "vae.wan_vae": ("WanVAEConfig",),
}  # fmt: skip

# The module of each name.
MODULES: dict[str, str] = {name: f"dit_video.{room}" for room, names in _ROOMS.items() for name in names}

# What else experiments, tasks and conditions of one's own are written with, and what a notebook needs.
_BESIDE_COMPONENTS: Mapping[str, tuple[str, ...]] = {
    "data.batch": ("Batch",),
    "data.record": ("Examples", "Record", "Split"),
    "data.signals": ("Signal",),
    "data.sources": ("SourceInfo",),
    "data.text_cache": ("TextDtype",),
    "diffusion.objective": ("ddpm", "diffusion_forcing", "rectified_flow"),
    "diffusion.process": ("Corrupted",),
    "dit.condition": ("Condition",),
    "dit.latte": ("Variant",),
    "dit.network": ("Network", "NetworkConfig", "Remat"),
    "encoders.clip_block": ("Activation",),
    "encoders.text": ("HiddenState",),
    "encoders.tokenizer": ("Cleaning",),
    "evaluation.protocol": ("ResizeRule",),
    "experiment": ("load",),
    "nn.attention": ("QKNorm",),
    "nn.conv": ("Padding",),
    "nn.mlp": ("MLPKind",),
    "nn.module": ("Precision",),
    "nn.norm": ("Norm",),
    "nn.softmax_attention": ("Kernel",),
    "run.opened": ("Run", "open"),
    "run.train": ("train",),
    "tasks.evaluator": ("EvaluationData", "Evaluator", "Report"),
    "tasks.factorization": ("Factorization",),
    "tasks.keys": ("clip_keys",),
    "tasks.known_frames": ("Pattern",),
    "tasks.media": ("Media", "Picture", "Text", "Video"),
    "tasks.task": ("Function", "SamplingOptions", "Task"),
    "training.optimizer": ("Decay",),
    "vae.losses": ("ReconstructionLoss",),
}

# The module of each public name.
PUBLIC: Mapping[str, str] = MODULES | {
    name: f"dit_video.{room}" for room, names in _BESIDE_COMPONENTS.items() for name in names
}
