"""Roll-out of a world: one frame after the other, each by what is done, with a cache of the frames before it.

A frame is denoised in n passes of the network. The first of them also takes in the frame before, which is whole by
then and gets the noise level `past.noise`: what it is seen as ever after costs no pass of its own. All is one program
whatever the number of steps and the scale of guidance, which are arguments.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from dit_video.arrays import Latents, Output, Time, Video
from dit_video.data.batch import Batch
from dit_video.diffusion.guidance import Guidance
from dit_video.diffusion.objective import Gaussian
from dit_video.diffusion.prediction import DenoiseFn
from dit_video.diffusion.sampler import SingleStep
from dit_video.dit.action_condition import ActionCondition
from dit_video.dit.network import CausalNetwork
from dit_video.nn.cache import KeyValueCache
from dit_video.vae.codec import LatentCodec, to_pixels, to_video

MAX_STEPS = 64
# Of the random numbers of a frame: its noise, its steps, and the noise with which later frames see it.
_PRIOR, _STEPS, _PAST = range(3)


class Settings(NamedTuple):
    """What may change from frame to frame.

    Attributes:
        times: of sampling, the first `num_steps` + 1 of them.
        guidance: its scale.
    """

    times: Float[Array | np.ndarray, "times"]
    num_steps: Int[Array | np.ndarray, ""]
    guidance: Float[Array | np.ndarray, ""]


class Stream(NamedTuple):
    """A roll-out up to now.

    Attributes:
        cache: of all frames but the last, with guidance in other rows those of the network without actions.
        last: the last frame, as later ones see it.
        cond: what led to it.
        number: its number, from 0 on.
    """

    cache: KeyValueCache
    last: Float[Array, "B 1 h w c"]
    cond: Array
    number: Int[Array, ""]
    keys: Key[Array, "B"]


class Shown(NamedTuple):
    """A roll-out with the codec's decoder, which is causal in time too.

    Attributes:
        decoder: its cache.
    """

    stream: Stream
    decoder: tuple


@dataclasses.dataclass(frozen=True, kw_only=True)
class RollOut:
    """Roll-out of a trained network; its methods are pure, to be jitted.

    Attributes:
        noise: level at which frames see those before them.
        latents: (t, h, w) of a clip in training, which decides how times are shifted.
        guided: whether guidance may have another scale than 1, which takes twice the memory and time.
    """

    condition: ActionCondition
    objective: Gaussian
    sampler: SingleStep
    guidance: Guidance
    noise: float
    latents: tuple[int, int, int]
    guided: bool

    def settings(self, num_steps: int | None = None, guidance: float | None = None) -> Settings:
        """Settings as host arrays; by default the sampler's steps and the scale of `guidance`.

        Raises:
            ValueError: as many steps as there is no room for, or guidance where none is carried along.
        """
        steps = self.sampler.num_steps if num_steps is None else num_steps
        scale = self.guidance.scale if guidance is None else guidance
        if not 1 <= steps <= MAX_STEPS:
            raise ValueError(f"num_steps={steps}: must be from 1 to {MAX_STEPS}")
        if scale < 0 or (scale != 1 and not self.guided):
            why = "must be at least 0" if scale < 0 else "needs guided=True when the world is opened"
            raise ValueError(f"guidance={scale}: {why}")
        grid = self.objective.host_times(steps, int(np.prod(self.latents)), self.sampler.spacing)
        times = np.pad(grid, (0, MAX_STEPS - steps))
        return Settings(times, np.asarray(steps, np.int32), np.asarray(scale, np.float32))

    def begin(self, model: CausalNetwork, latents: Latents, cond: Array, keys: Key[Array, "B"]) -> Stream:
        """A stream of one frame."""
        number = jnp.zeros((), jnp.int32)
        # A pass is over two frames at most.
        cache = model.empty_cache(len(keys) * (1 + self.guided), (2, *self.latents[1:]))
        return Stream(cache, self._as_past(latents, keys, number), cond, number, keys)

    def absorb(self, model: CausalNetwork, blocks: list[Any], stream: Stream, latents: Latents, cond: Array) -> Stream:
        """The stream with a frame that is known."""
        levels = jnp.full((len(latents), 1), self.noise)
        _, cache = self._pass(model, blocks, stream.last, levels, stream.cond, stream.number, stream.cache)
        return self._after(stream, cache, latents, cond)

    def step(
        self, model: CausalNetwork, blocks: list[Any], stream: Stream, cond: Array, settings: Settings
    ) -> tuple[Stream, Latents]:
        """The stream with one frame more, and its latents [B 1 h w c].

        Args:
            cond: what leads to it, [B 1 ...].
        """
        number, rows = stream.number + 1, len(stream.keys)

        def level(index: Array | int) -> Time:
            return jnp.broadcast_to(jnp.asarray(settings.times)[index], (rows, 1))

        def output_of(output: Output, t: Time) -> Output:
            if not self.guided:
                return output
            by_actions, without = (jax.tree.map(part, output) for part in (lambda x: x[:rows], lambda x: x[rows:]))
            return self.guidance.mixture(by_actions, without, t, jnp.asarray(settings.guidance))

        # The frame before, and the first step of this one.
        x_1 = self.objective.prior(self._keys(stream.keys, number, _PRIOR), (1, *stream.last.shape[2:]))
        two = jnp.concatenate([stream.last, x_1], axis=1)
        levels = jnp.concatenate([jnp.full((rows, 1), self.noise), level(0)], axis=1)
        conds = jnp.concatenate([stream.cond, cond], axis=1)
        both, cache = self._pass(model, blocks, two, levels, conds, stream.number, stream.cache)
        first = output_of(jax.tree.map(lambda x: x[:, 1:], both), level(0))

        def denoise(x_t: Latents, t: Time) -> Output:
            return output_of(self._pass(model, blocks, x_t, t, cond, number, cache)[0], t)

        def stepped(index: Array | int, x_t: Latents, denoise: DenoiseFn) -> Latents:
            keys = self._keys(self._keys(stream.keys, number, _STEPS), index)
            return self.sampler.step(denoise, self.objective, x_t, level(index), level(index + 1), keys)

        x = stepped(0, x_1, _beginning_with(first, denoise))
        x = jax.lax.fori_loop(1, settings.num_steps, lambda index, x: stepped(index, x, denoise), x)
        return self._after(stream, cache, x, cond), x

    def clips(
        self, model: CausalNetwork, batch: Batch, latents: Latents, keys: Key[Array, "B"]
    ) -> Float[Array, "B all h w c"]:
        """Latents of clips that begin with known frames, with as many more as a batch has actions for.

        Args:
            latents: of the known frames.
        """
        blocks, settings, num_known = model.unstacked(), self.settings(), latents.shape[1]
        cond = self.condition.read(batch.signals)
        by_frame = lambda x: jnp.swapaxes(x, 0, 1)[:, :, None]  # noqa: E731

        def absorb(stream: Stream, frame: tuple[Latents, Array]) -> tuple[Stream, None]:
            return self.absorb(model, blocks, stream, *frame), None

        def step(stream: Stream, cond: Array) -> tuple[Stream, Latents]:
            return self.step(model, blocks, stream, cond, settings)

        stream = self.begin(model, latents[:, :1], cond[:, :1], keys)
        stream, _ = jax.lax.scan(absorb, stream, (by_frame(latents[:, 1:]), by_frame(cond[:, 1:num_known])))
        _, made = jax.lax.scan(step, stream, by_frame(cond[:, num_known:]))
        return jnp.concatenate([latents, jnp.swapaxes(made[:, :, 0], 0, 1)], axis=1)

    # With pixels, for who watches.

    def begin_shown(
        self, model: CausalNetwork, codec: LatentCodec, frame: Video, actions: Array, keys: Key[Array, "B"]
    ) -> tuple[Shown, tuple]:
        """A stream of one frame [B 1 H W 3], and the cache of the encoder."""
        latents, encoder = _encoded(codec, frame, None)
        _, decoder = codec.vae.decode_stream(codec.unwhiten(latents))
        stream = self.begin(model, latents, self.condition.grouped(actions, first=True), keys)
        return Shown(stream, decoder), encoder

    def absorb_shown(
        self,
        model: CausalNetwork,
        blocks: list[Any],
        codec: LatentCodec,
        shown: Shown,
        encoder: tuple,
        frames: Video,
        actions: Array,
    ) -> tuple[Shown, tuple]:
        """The stream with the frames [B s H W 3] of one latent frame, which are known; and the cache of the encoder."""
        latents, encoder = _encoded(codec, frames, encoder)
        _, decoder = codec.vae.decode_stream(codec.unwhiten(latents), shown.decoder)
        cond = self.condition.grouped(actions, first=False)
        return Shown(self.absorb(model, blocks, shown.stream, latents, cond), decoder), encoder

    def step_shown(
        self,
        model: CausalNetwork,
        blocks: list[Any],
        codec: LatentCodec,
        shown: Shown,
        actions: Array,
        settings: Settings,
    ) -> tuple[Shown, UInt8[Array, "B s H W 3"]]:
        """The stream with one latent frame more, and its frames, by the actions [B s ...] that lead to them."""
        cond = self.condition.grouped(actions, first=False)
        stream, latents = self.step(model, blocks, shown.stream, cond, settings)
        pixels, decoder = codec.vae.decode_stream(codec.unwhiten(latents), shown.decoder)
        return Shown(stream, decoder), to_video(pixels)

    def _pass(
        self,
        model: CausalNetwork,
        blocks: list[Any],
        x_t: Latents,
        t: Time,
        cond: Array,
        first: Int[Array, ""],
        cache: KeyValueCache,
    ) -> tuple[Output, KeyValueCache]:
        """One pass of the network; with guidance over twice the rows, the second half without actions."""
        if self.guided:
            x_t, t = (jnp.concatenate([x, x]) for x in (x_t, t))
            cond = jnp.concatenate([cond, self.condition.empty(cond)])
        return model.cached(blocks, x_t, t, cond, first, cache)

    def _after(self, stream: Stream, cache: KeyValueCache, latents: Latents, cond: Array) -> Stream:
        number = stream.number + 1
        return Stream(cache, self._as_past(latents, stream.keys, number), cond, number, stream.keys)

    def _as_past(self, latents: Latents, keys: Key[Array, "B"], number: Array) -> Latents:
        eps = self.objective.prior(self._keys(keys, number, _PAST), latents.shape[1:])
        return self.objective.corrupt_with(latents, eps, jnp.full((len(latents), 1), self.noise)).x_t

    def _keys(self, keys: Key[Array, "B"], *numbers: Array | int) -> Key[Array, "B"]:
        for number in numbers:
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        return keys


def _encoded(codec: LatentCodec, frames: Video, cache: tuple | None) -> tuple[Latents, tuple]:
    moments, cache = codec.vae.encode_stream(to_pixels(frames), cache)
    return codec.whiten(moments), cache


def _beginning_with(output: Output, denoise: DenoiseFn) -> DenoiseFn:
    """A denoiser whose first call, when a program is traced, costs nothing: its output is known."""
    known = [output]
    return lambda x_t, t: known.pop() if known else denoise(x_t, t)
