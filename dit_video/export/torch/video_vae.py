"""Export of this package's VAE to the PyTorch module of export/torch/files/vae.py, with its latent statistics."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

from dit_video.export.torch.module import TorchModule
from dit_video.export.weights import define_codec
from dit_video.nn.conv import fold
from dit_video.nn.module import Definition
from dit_video.published.family import Pair, Shape, listening
from dit_video.published.vae_family import channels_first
from dit_video.vae.codec import LatentCodec
from dit_video.vae.video_vae import VideoVAEConfig
from dit_video.weights.names import Dialect, Row, Table

_OURS = "vae."


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchVAE(TorchModule):
    """`VideoVAE` codec as a PyTorch module."""

    source: ClassVar[str] = "vae.py"
    module: ClassVar[str] = "vae.py"
    weights: ClassVar[str] = "vae.safetensors"
    field: ClassVar[str] = "vae"

    config: VideoVAEConfig

    @classmethod
    def of_codec(cls, codec: LatentCodec) -> "TorchVAE | None":
        """The module of a codec; None where its VAE is of another kind."""
        return cls(config=codec.vae.config) if isinstance(codec.vae.config, VideoVAEConfig) else None

    def define(self, dtype: DTypeLike = jnp.float32) -> Definition:
        return define_codec(self.config, jnp.dtype(dtype))

    def torch_config(self) -> dict[str, Any]:
        return {
            "latent_channels": self.config.latent_channels,
            "widths": self.config.widths,
            "strides": self.config.strides,
            "num_blocks": self.config.num_blocks,
            "num_decoder_blocks": self.config.num_decoder_blocks,
        }

    def table(self) -> Table:
        return Table(rows=tuple(_row(name, spec.shape) for name, spec in self.define().shapes.items()))

    def pairs(self, params: Mapping[str, Array | np.ndarray], theirs: Any, shape: Shape) -> Iterator[Pair]:
        import torch

        rng, definition = np.random.default_rng(0), self.define()
        pixels = rng.uniform(-1.0, 1.0, (1, *shape, 3)).astype(np.float32)
        latents = rng.standard_normal((1, *self.config.latent_shape(shape), self.config.latent_channels), np.float32)

        @jax.jit
        def compute(params: Mapping[str, Array], pixels: Array, latents: Array) -> dict[str, Array]:
            codec = definition.bind(params)
            vae, z = codec.vae, codec.unwhiten(latents)
            layers = _layers(vae.encoder, "encoder", fold(pixels, self.config.strides[0], first=True))
            layers |= _layers(vae.decoder, "decoder", z)
            moments = vae.encode(pixels)
            return layers | {"moments": moments, "latents": codec.whiten(moments), "pixels": vae.decode(z)}

        ours = compute(dict(params), pixels, latents)
        outputs = ("moments", "latents", "pixels")
        with listening(theirs, [name for name in ours if name not in outputs]) as heard:
            moments = theirs.encode(torch.from_numpy(channels_first(pixels)))
            decoded = theirs.decode(torch.from_numpy(channels_first(latents)))
        heard |= {"moments": moments.numpy(), "latents": theirs.whiten(moments).numpy(), "pixels": decoded.numpy()}
        for name, value in heard.items():
            yield Pair(name, channels_first(np.asarray(ours[name])), value)


def _layers(layers: Any, name: str, x: Array) -> dict[str, Array]:
    """Outputs of each layer for a whole clip."""
    outputs = {}
    for index, layer in enumerate(layers):
        x, _ = layer(x)
        outputs[f"{name}.{index}"] = x
    return outputs


def _row(ours: str, shape: tuple[int, ...]) -> Row:
    layer, _, kind = ours.removeprefix(_OURS).rpartition(".")
    if kind == "kernel":
        *window, inputs, outputs = shape
        theirs, their_shape, order = f"{layer}.weight", (outputs, inputs, *window), (2, 3, 4, 1, 0)
    else:
        theirs = f"{layer}.weight" if kind == "scale" else ours.removeprefix(_OURS)
        their_shape, order = shape, (0,)
    return Row(ours=ours, our_shape=shape, theirs={Dialect.TORCH: (theirs,)}, shape=their_shape, order=order)
