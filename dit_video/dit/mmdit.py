"""The multimodal diffusion transformer (MMDiT) of Stable Diffusion 3 (Esser et al., 2403.03206), for images and video.

Text is a stream of tokens beside that of video, with weights of its own; both attend jointly, to all tokens of both.
The noise level and one vector for the whole caption modulate every block of both (adaLN-zero). Images have fixed
positions, those in the middle of a table, as published; video has rotary positions on three axes.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dit_video.arrays import Latents, Output, Text, Time
from dit_video.config.bounds import above, at_least
from dit_video.distributed.sharding import constrain
from dit_video.dit.condition import Cond, Condition, required
from dit_video.dit.known_frames import AsChannels, refuse_channels
from dit_video.dit.network import Network, NetworkConfig, scan_blocks
from dit_video.nn.attention import Attention, QKNorm
from dit_video.nn.embed import TimeEmbedding, VectorEmbedding
from dit_video.nn.joint_attention import JointAttention
from dit_video.nn.linear import linear
from dit_video.nn.mlp import PlainMLP
from dit_video.nn.modulation import AdaLN, gated, modulate
from dit_video.nn.norm import layer_normalize
from dit_video.nn.patches import from_tokens, latent_shape, per_patch, to_tokens
from dit_video.nn.positions import NTKAware, at_patches, patch_angles, sincos_axes, stretch_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionTable:
    """Table of sinusoidal positions of a square of patches, of which an image takes the middle (2403.03206, 5.3.2).

    Row or column number n is at the position (n - origin) * step.

    Attributes:
        size: rows and columns of the square: no image has more.
    """

    size: int
    origin: float
    step: float

    def __post_init__(self):
        at_least(self, 1, "size", why="SD3's is 192")
        above(self, 0, "step", why="SD3's is 0.25")

    def middle(self, num: int) -> Float[np.ndarray, "n"]:
        """Positions of `num` rows or columns in the middle.

        Raises:
            ValueError: there are not so many.
        """
        if num > self.size:
            raise ValueError(
                f"latents are {num} patches wide or high, the table of positions {self.size}: take smaller clips, or "
                "rotary positions with config.task.network.position_table=None"
            )
        return (np.arange(num) + (self.size - num) // 2 - self.origin) * self.step


@dataclasses.dataclass(frozen=True, kw_only=True)
class MMDiTConfig(NetworkConfig):
    """Configuration of an MMDiT, by default of one for video.

    Attributes:
        mlp_ratio: hidden width of the MLPs over that of the streams.
        qk_norm: over what queries and keys are normalised, in each stream.
        num_dual_blocks: number of first blocks in which tokens of video attend a second time, to one another alone
            (SD3.5-medium, MMDiT-X).
        text_output: whether the last block writes to the stream of text too, for a task that reads it.
        attend_padding: whether the padding of text is attended to, as in published networks.
        position_table: fixed positions of images, added to the tokens; they do not tell frames apart. None: rotary
            positions of frame, row and column, for video.
        extrapolation: rotary positions of latents that are larger or longer than those of training; None: as they are.
    """

    mlp_ratio: float = 4.0
    qk_norm: QKNorm = QKNorm.PER_HEAD
    num_dual_blocks: int = 0
    text_output: bool = False
    attend_padding: bool = False
    position_table: PositionTable | None = None
    extrapolation: NTKAware | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"MMDiTConfig.hidden_size={self.hidden_size}: must be num_heads={self.num_heads} times an even head "
                "size"
            )
        if self.position_table is not None and self.hidden_size % 4:
            raise ValueError(
                f"MMDiTConfig.hidden_size={self.hidden_size}: must be a multiple of 4 where position_table is one"
            )
        if self.position_table is not None and self.extrapolation is not None:
            raise ValueError(
                f"MMDiTConfig.extrapolation={self.extrapolation}: is of rotary positions; leave it None where "
                "position_table is one"
            )
        if not 0 <= self.num_dual_blocks <= self.depth:
            raise ValueError(
                f"MMDiTConfig.num_dual_blocks={self.num_dual_blocks}: must be between 0 and depth={self.depth}"
            )

    @property
    def mlp_size(self) -> int:
        return int(self.hidden_size * self.mlp_ratio)

    def build(
        self,
        channels: int,
        condition: Condition | None,
        *,
        known: AsChannels | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> "MMDiT":
        refuse_channels(type(self).__name__, known)
        return MMDiT(self, channels, condition, dtype=dtype, rngs=rngs)


# As published for 1024 x 1024 pixels, where the middle 64 x 64 patches have the positions 0 ... 15.75.
SD3_MEDIUM = MMDiTConfig(
    hidden_size=1536,
    depth=24,
    num_heads=24,
    qk_norm=QKNorm.NONE,
    attend_padding=True,
    position_table=PositionTable(size=192, origin=64.0, step=0.25),
)
SD3_5_MEDIUM = dataclasses.replace(
    SD3_MEDIUM,
    qk_norm=QKNorm.PER_HEAD,
    num_dual_blocks=13,
    position_table=PositionTable(size=384, origin=160.0, step=0.25),
)
SD3_5_LARGE = dataclasses.replace(SD3_MEDIUM, hidden_size=2432, depth=38, num_heads=38, qk_norm=QKNorm.PER_HEAD)


class Streams(NamedTuple):
    """The two streams of tokens that go through the blocks."""

    video: Float[Array, "*layers B N D"]
    text: Float[Array, "*layers B L D"]


class Conditioning(NamedTuple):
    """Conditioning vectors, which modulate the blocks: of video for each frame, of text their mean over frames."""

    video: Float[Array, "B #f D"]
    text: Float[Array, "B 1 D"]


class Block(nnx.Module):
    """Transformer block of an MMDiT: joint attention, and an MLP for each stream, modulated and gated (adaLN-zero).

    Args of the constructor:
        dual: whether tokens of video attend a second time, to one another alone, in parallel to joint attention.
        reads_text: whether the stream of text is only attended to and left as it is.
    """

    def __init__(self, config: MMDiTConfig, *, dual: bool, reads_text: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        D, K, options = config.hidden_size, config.num_heads, {"dtype": dtype, "rngs": rngs}
        self.video_modulation = AdaLN(9 if dual else 6, D, **options)
        self.text_modulation = AdaLN(2 if reads_text else 6, D, **options)
        self.attention = JointAttention(D, K, qk_norm=config.qk_norm, text_output=not reads_text, **options)
        self.video_attention = Attention(D, K, qk_norm=config.qk_norm, **options) if dual else None
        self.video_mlp = PlainMLP(D, config.mlp_size, **options)
        self.text_mlp = None if reads_text else PlainMLP(D, config.mlp_size, **options)

    def __call__(
        self,
        x: Streams,
        conditioning: Conditioning,
        angles: Float[Array, "N r"] | None,
        num_text: Int[Array, "B"] | None,
    ) -> Streams:
        """One step of depth; `angles` and `num_text` as in `JointAttention`."""
        video, text = x
        shift, scale, gate, shift_m, scale_m, gate_m, *second = self.video_modulation(conditioning.video)
        of_text = self.text_modulation(conditioning.text)
        # As published, scale comes before shift where these two are all.
        shift_t, scale_t, *rest = of_text[::-1] if self.text_mlp is None else of_text
        normed = layer_normalize(video)
        read, read_text = self.attention(
            modulate(normed, shift, scale), modulate(layer_normalize(text), shift_t, scale_t), angles, num_text
        )
        video = video + gated(gate, read)
        if self.video_attention is not None:
            shift, scale, gate = second
            video = video + gated(gate, self.video_attention(modulate(normed, shift, scale), angles))
        video = video + gated(gate_m, self.video_mlp(modulate(layer_normalize(video), shift_m, scale_m)))
        if self.text_mlp is not None:
            assert read_text is not None, "text that has an MLP is written"
            gate_t, shift_tm, scale_tm, gate_tm = rest
            text = text + gated(gate_t, read_text)
            text = text + gated(gate_tm, self.text_mlp(modulate(layer_normalize(text), shift_tm, scale_tm)))
        return Streams(video, text)


class MMDiT(Network):
    """MMDiT, the network of an `MMDiTConfig`; the noise level t is embedded as the timestep 1000 t.

    Raises:
        ValueError: the condition has no text.
    """

    def __init__(
        self,
        config: MMDiTConfig,
        channels: int,
        condition: Condition | None,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        text_encoder = None if condition is None else condition.text_encoder(dtype=dtype, rngs=rngs)
        if text_encoder is None:
            raise ValueError(
                f"config.task.condition={condition}: an MMDiT has a stream of text; give it a TextCondition or an "
                "EmbeddedText"
            )
        if config.attend_padding and condition is not None and condition.num_text_tokens is None:
            raise ValueError(
                "config.task.network.attend_padding=True: captions of bytes are padded to the length of their batch, "
                "and would mean something else at another; leave it False"
            )
        self.config, self.dtype, self.text_encoder = config, dtype, text_encoder
        D, patch_dim = config.hidden_size, int(np.prod(config.patch_size)) * channels
        self.x_embedder = linear(patch_dim, D, (None, "embed"), rngs=rngs, dtype=dtype)
        self.t_embedder = TimeEmbedding(D, dtype=dtype, rngs=rngs)
        self.pooled_embedder = VectorEmbedding(text_encoder.pooled_size, D, dtype=dtype, rngs=rngs)
        self.text_embedder = linear(text_encoder.hidden_size, D, (None, "embed"), rngs=rngs, dtype=dtype)

        def stack(num_layers: int, *, dual: bool, reads_text: bool = False) -> Block | None:
            """Every parameter gains a leading axis of layers; None of no layers."""
            keys = jax.random.split(rngs.params(), num_layers)
            make = lambda key: Block(config, dual=dual, reads_text=reads_text, dtype=dtype, rngs=nnx.Rngs(key))  # noqa: E731
            return jax.vmap(make)(keys) if num_layers else None

        num_last = 0 if config.text_output else 1
        num_dual = min(config.num_dual_blocks, config.depth - num_last)
        # Blocks of one kind are one stack, and one loop.
        self.dual_blocks = stack(num_dual, dual=True)
        self.blocks = stack(config.depth - num_last - num_dual, dual=False)
        self.last_block = stack(num_last, dual=config.num_dual_blocks == config.depth, reads_text=True)
        self.final_modulation = AdaLN(2, D, dtype=dtype, rngs=rngs)
        zeros = nnx.initializers.zeros
        self.final_layer = linear(D, patch_dim, ("embed", None), rngs=rngs, dtype=dtype, init=zeros)

    def output(self, x_t: Latents, t: Time, cond: Cond | None) -> Output:
        """Prediction; no variance is learned."""
        conditioning, x, _ = self._through_blocks(x_t, t, cond, keep=False)
        scale, shift = self.final_modulation(conditioning.video)  # as published, in this order
        tokens = self.final_layer(modulate(layer_normalize(x.video), shift, scale))
        cells = from_tokens(tokens, self.config.patch_size, latent_shape(x_t))
        return Output(cells.astype(jnp.float32), None)

    def layers(self, x_t: Latents, t: Time, cond: Cond | None) -> dict[str, Array]:
        conditioning, _, kept = self._through_blocks(x_t, t, cond, keep=True)
        return {
            "conditioning": conditioning.video,
            "blocks.video": jnp.concatenate([part.video for part in kept]),
            "blocks.text": jnp.concatenate([part.text for part in kept]),
        }

    def _through_blocks(
        self, x_t: Latents, t: Time, cond: Cond | None, *, keep: bool
    ) -> tuple[Conditioning, Streams, list[Streams]]:
        """Conditioning vectors, the streams after the last block, and with `keep` those after every block by stack."""
        text: Text = self.text_encoder(required(cond))
        conditioning = self._conditioning(t, text)
        num_text = None if self.config.attend_padding else jnp.asarray(text.num_tokens)
        video, angles = self._with_positions(self.x_embedder(to_tokens(x_t, self.config.patch_size)), latent_shape(x_t))

        def apply_block(x: Streams, block: Block) -> Streams:
            x = Streams(constrain(x.video, "batch", "tokens", None), constrain(x.text, "batch", None, None))
            return block(x, conditioning, angles, num_text)

        x, kept = Streams(video, self.text_embedder(jnp.asarray(text.tokens))), []
        for stack in (self.dual_blocks, self.blocks, self.last_block):
            if stack is not None:
                x, every = scan_blocks(apply_block, x, stack, remat=self.config.remat, keep=keep)
                kept += [] if every is None else [every]
        return conditioning, x, kept

    def _conditioning(self, t: Time, text: Text) -> Conditioning:
        of_time = self.t_embedder(per_patch(t, self.config.patch_size))
        vector = constrain(of_time + self.pooled_embedder(jnp.asarray(text.pooled))[:, None], "batch", None, None)
        return Conditioning(vector, constrain(jnp.mean(vector, axis=1, keepdims=True), "batch", None, None))

    def _with_positions(
        self, x: Float[Array, "B N D"], shape: tuple[int, int, int]
    ) -> tuple[Float[Array, "B N D"], Float[Array, "N r"] | None]:
        """Positional embedding: tokens with fixed positions added, or as they are, and the angles of rotary ones."""
        config, table = self.config, self.config.position_table
        if table is None:
            head_dim, stretch = config.hidden_size // config.num_heads, stretch_of(config.extrapolation, shape)
            return x, patch_angles(shape, config.patch_size, head_dim, stretch=stretch)
        frames, rows, columns = (n // p for n, p in zip(shape, config.patch_size))
        axes = sincos_axes(table.middle(rows), table.middle(columns), config.hidden_size)
        places = at_patches(*axes, np.zeros((frames, config.hidden_size), np.float32))
        return x + places.astype(x.dtype), None
