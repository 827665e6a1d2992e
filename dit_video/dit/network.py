"""Base classes of denoising transformers, configuration and network, and the scan over stacked blocks."""

import abc
import dataclasses
import enum
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dit_video.arrays import Latents, Output, Time
from dit_video.config.bounds import at_least
from dit_video.dit.condition import Cond, Condition
from dit_video.dit.known_frames import AsChannels
from dit_video.nn.attention_mask import BlockCausal, Interleaved, TwoCopy
from dit_video.nn.cache import KeyValueCache
from dit_video.nn.patches import PatchSize
from dit_video.nn.whole_attention import ATTENTION_RESULT


class Remat(enum.Enum):
    """Rematerialisation (gradient checkpointing): what the backward pass keeps of a block, and what it recomputes.

    What attention made is always kept: its result and log-sum-exp are as large as one stream of tokens, and to make
    them again takes more arithmetic than all else where sequences are long.
    """

    NOTHING_RECOMPUTED = "none"
    DOTS = "dots"  # keep matrix products, recompute the rest
    FULL = "full"  # keep block inputs and attention only: least memory, one more forward pass
    OFFLOAD = "offload"  # as FULL, with block inputs in the memory of the host until they are needed


_BLOCK_INPUT = "block input"
# cuDNN's attention names nothing; these make its result and log-sum-exp.
_CUDNN_ATTENTION = ("dot_product_attention_fwd", "dot_product_attention_fwd_wrapper")


def _keeps_attention(rest: Callable[..., Any]) -> Callable[..., Any]:
    """Policy of `jax.checkpoint`: keeps what attention made, and of all else what `rest` keeps."""
    of_attention = jax.checkpoint_policies.save_only_these_names(ATTENTION_RESULT)

    def policy(primitive: Any, *avals: Any, **params: Any) -> Any:
        if primitive.name in _CUDNN_ATTENTION or of_attention(primitive, *avals, **params):
            return True
        return rest(primitive, *avals, **params)

    return policy


_REMAT_POLICY = {
    Remat.DOTS: _keeps_attention(jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
    Remat.FULL: _keeps_attention(jax.checkpoint_policies.nothing_saveable),
    Remat.OFFLOAD: _keeps_attention(
        jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[_BLOCK_INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        )
    ),
}

Stream = TypeVar("Stream")


def scan_blocks(
    apply: Callable[[Stream, Any], Stream], x: Stream, blocks: Any, *, remat: Remat, keep: bool = False
) -> tuple[Stream, Stream | None]:
    """Scan over stacked blocks (`jax.lax.scan`): one loop, so that compile time does not grow with depth.

    Args:
        apply: (stream, one block) -> stream, a pytree of arrays.
        blocks: a module each of whose parameters has a leading axis of layers.
        remat: what of each block the backward pass recomputes.
        keep: whether to return the stream after every block too.

    Returns:
        the stream after the last block, and with `keep` the streams after each, stacked, else None.
    """

    def body(x, block):
        x = jax.tree.map(lambda leaf: checkpoint_name(leaf, _BLOCK_INPUT), x)
        x = apply(x, block)
        return x, x if keep else None

    if remat is not Remat.NOTHING_RECOMPUTED:
        body = jax.checkpoint(body, policy=_REMAT_POLICY[remat], prevent_cse=False)
    return jax.lax.scan(body, x, blocks)


def split_variance(cells: Float[Array, "B t h w k"]) -> Output:
    """Prediction and learned variance, from a last layer that has channels of the one, then as many of the other."""
    prediction, variance = jnp.split(cells, 2, axis=-1)
    return Output(prediction, variance)


class Network(nnx.Module):
    """Denoiser of video latents: (x_t, t, cond) -> prediction of x_t's shape."""

    def __call__(self, x_t: Latents, t: Time, cond: Cond | None) -> Latents:
        """The prediction of `output`."""
        return self.output(x_t, t, cond).prediction

    @abc.abstractmethod
    def output(self, x_t: Latents, t: Time, cond: Cond | None) -> Output:
        """Prediction of the objective's target from noisy latents, and the variance where one is learned.

        Args:
            x_t: latents at noise level t; (t, h, w) must divide by the patch size.
            t: noise level in [0, 1], one per clip `[B 1]` or per latent frame `[B t]`.
            cond: what the condition of the network makes of a batch (`Condition.read`); None where it has none.
        """

    @abc.abstractmethod
    def layers(self, x_t: Latents, t: Time, cond: Cond | None) -> dict[str, Array]:
        """Activations by name: the conditioning vector, and the stream of tokens after every block, stacked."""


class CausalNetwork(Network):
    """Denoiser that is causal over frames: what it says of a frame depends on no later one.

    So it can be trained on all frames at once, given clean ones before each (teacher forcing), and go forward frame by
    frame with a cache of what it computed for those before. Frames are numbered from the first of a stream.
    """

    @abc.abstractmethod
    def beside_clean(self, x_t: Latents, t: Time, clean: Latents, t_clean: Time, cond: Cond | None) -> Output:
        """`output` for noisy frames each of which sees clean ones before it instead of noisy ones, in one pass.

        Args:
            clean: of the same clips and shape as x_t, at the noise levels `t_clean`.
        """

    @abc.abstractmethod
    def unstacked(self) -> list[Any]:
        """The blocks one by one, for `cached`; made once, for what is cut out of a stack is copied each time."""

    @abc.abstractmethod
    def empty_cache(self, batch_size: int, shape: tuple[int, int, int]) -> KeyValueCache:
        """A ring for frames of latents of `shape` (t, h, w): those that a frame sees, t at a time.

        Raises:
            ValueError: there is no window: a frame sees all before it, and no ring holds them.
        """

    @abc.abstractmethod
    def cached(
        self, blocks: list[Any], x_t: Latents, t: Time, cond: Cond | None, first: Int[Array, ""], cache: KeyValueCache
    ) -> tuple[Output, KeyValueCache]:
        """`output` for the frames `first` ... of clips whose frames before are in the cache; and the cache with them.

        Args:
            blocks: those of `unstacked`.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalFrames:
    """Attention that is block-causal over frames: full inside a frame, and to the frames before it.

    Attributes:
        window: how many frames are visible, the own one included; None for all. Blocks one upon the other see further.
    """

    window: int | None = None

    def __post_init__(self):
        at_least(self, 1, "window")

    def mask(self, num_places: int, num_frames: int) -> Interleaved:
        """For tokens of video in the order of `patchify`."""
        return Interleaved(BlockCausal(num_places, self.window), num_places, num_frames)

    def two_copies(self, num_places: int, num_frames: int) -> Interleaved:
        """For `num_frames` noisy frames and then as many clean ones."""
        copies = TwoCopy(num_places, num_places * num_frames, self.window)
        return Interleaved(copies, num_places, 2 * num_frames)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(abc.ABC):
    """Configuration of a transformer of any tokens: what plans and rematerialisation ask of it.

    Attributes:
        hidden_size: D, the width of the stream of tokens.
        depth: number of blocks.
        num_heads: K, heads of attention.
        remat: rematerialisation of blocks, a matter of memory and time: the network computes the same.
    """

    hidden_size: int
    depth: int
    num_heads: int
    remat: Remat = Remat.NOTHING_RECOMPUTED

    def __post_init__(self):
        at_least(self, 1, "hidden_size", "depth", "num_heads")

    @property
    def function(self) -> "TransformerConfig":
        """The configuration without what changes memory and time alone: equal ones compute the same function."""
        return dataclasses.replace(self, remat=Remat.NOTHING_RECOMPUTED)

    @property
    @abc.abstractmethod
    def mlp_size(self) -> int:
        """Hidden width of the MLP of a block."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig(TransformerConfig):
    """Configuration of a denoiser of latents, a field of an experiment.

    Attributes:
        patch_size: (frames, rows, columns) in latent cells.
    """

    patch_size: PatchSize = (1, 2, 2)

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 1, "patch_size")

    @property
    def learns_variance(self) -> bool:
        """Whether `Network.output` has a learned variance of the denoising step."""
        return False

    @property
    def causal_frames(self) -> CausalFrames | None:
        """How attention is causal over frames, so that `build` makes a `CausalNetwork`; None where it is not."""
        return None

    @property
    def takes_frame_conditions(self) -> bool:
        """Whether the network takes a condition that has a value for each latent frame."""
        return False

    def check_condition(self, condition: Condition, *, frames_per_latent: int) -> None:
        """Raises ValueError where the condition has a value for each frame, and these cannot be taken in."""
        condition.check_frames(frames_per_latent)
        if condition.by_frame and not (self.takes_frame_conditions and self.patch_size[0] == 1):
            raise ValueError(
                f"Denoise.condition={type(condition).__name__}: has a value for each frame; the network must be of a "
                f"DiTConfig with patches of one frame, not of a {type(self).__name__}(patch_size={self.patch_size})"
            )

    @abc.abstractmethod
    def build(
        self,
        channels: int,
        condition: Condition | None,
        *,
        known: AsChannels | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> Network:
        """The network for latents of `channels`, with fresh parameters.

        Args:
            condition: what it is conditioned on; None where it is unconditional.
            known: channels of known frames that it takes beside those of x_t.
            dtype: of activations; parameters are float32.

        Raises:
            ValueError: a network of this kind takes no such condition, or no channels of known frames.
        """
