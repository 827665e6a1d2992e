"""Choice of a pretrained image encoder, as a value of an experiment."""

import dataclasses
from typing import ClassVar

import jax
from flax import nnx
from jaxtyping import Array, Key

from dit_video.config.paths import expand
from dit_video.encoders.clip_image import CLIPVisionConfig, CLIPVisionModel
from dit_video.nn.module import Precision


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainedImage:
    """Pretrained CLIP vision transformer.

    Attributes:
        encoder: its network.
        model: folder of transformers, with config.json and weights.
        precision: what it computes in and keeps its weights in.
        digest: digest of its weights; left None, it is looked up when the run starts and recorded then.
        torch_files: name and published SHA-256 of each torch file in `model`, which is not read without; none of
            safetensors.
    """

    encoder: CLIPVisionConfig
    model: str
    precision: Precision = Precision.FLOAT32
    digest: str | None = None
    torch_files: tuple[tuple[str, str], ...] = ()

    PATHS: ClassVar[tuple[str, ...]] = ("model",)

    def __post_init__(self):
        expand(self)

    def blank(self, rng: Key[Array, ""]) -> CLIPVisionModel:
        """The encoder with random weights: for shapes, FLOPs and tests, without published weights."""
        dtype = self.precision.dtype
        network = CLIPVisionModel(self.encoder, dtype=dtype, rngs=nnx.Rngs(rng))
        return jax.tree.map(lambda x: x.astype(dtype), network)
