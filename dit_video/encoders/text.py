"""Choice of pretrained text encoders and how their embeddings are combined, as a value of an experiment."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from dit_video.arrays import Text
from dit_video.config.bounds import at_least
from dit_video.config.paths import expand
from dit_video.encoders.clip_text import CLIPTextModel
from dit_video.encoders.t5 import T5Encoder
from dit_video.encoders.tokenizer import Cleaning, Tokens
from dit_video.nn.module import Precision


class HiddenState(enum.Enum):
    """Layer of CLIP whose hidden states embed the tokens of a caption."""

    LAST = "last"  # after all blocks, normalised
    PENULTIMATE = "penultimate"  # before the last block


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenCLIP:
    """Pretrained CLIP text encoder.

    Attributes:
        model: folder of transformers, with config.json and weights.
        tokenizer: folder with tokenizer.json, or vocab.json and merges.txt, and tokenizer_config.json.
        num_tokens: of every caption; padding is attended to like all else, since it was so in training.
        torch_files: name and published SHA-256 of each torch file in `model`, which is not read without; none of
            safetensors.
    """

    model: str
    tokenizer: str
    state: HiddenState = HiddenState.PENULTIMATE
    num_tokens: int = 77
    torch_files: tuple[tuple[str, str], ...] = ()

    PATHS: ClassVar[tuple[str, ...]] = ("model", "tokenizer")

    def __post_init__(self):
        expand(self)
        _check_tokens(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenT5:
    """Pretrained T5 v1.1 or UMT5 encoder.

    Attributes:
        model: folder of transformers, with config.json and weights.
        tokenizer: folder with tokenizer.json and tokenizer_config.json.
        num_tokens: the most of a caption, its end among them.
        masked: whether padding is masked, in the encoder and after it.
        torch_files: as of `FrozenCLIP`.
    """

    model: str
    tokenizer: str
    num_tokens: int
    masked: bool = True
    torch_files: tuple[tuple[str, str], ...] = ()

    PATHS: ClassVar[tuple[str, ...]] = ("model", "tokenizer")

    def __post_init__(self):
        expand(self)
        _check_tokens(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroTokens:
    """Zero embeddings in place of a T5 that is left out to save its memory; they are attended to.

    SD3 was trained with each of its encoders left out at times (2403.03206, "Flexible Text Encoders").

    Attributes:
        num_tokens: of every caption, as many as the T5 would have.
        hidden_size: of the T5.
    """

    num_tokens: int
    hidden_size: int

    def __post_init__(self):
        _check_tokens(self)
        at_least(self, 1, "hidden_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainedText:
    """Pretrained text encoders and the combination of their embeddings.

    The states of both CLIPs stand side by side on the axis of features, which zeros fill up to the width of T5; the
    tokens of T5 follow them. The vector for the whole caption holds those of both CLIPs; without one it is the mean of
    T5's tokens.

    Attributes:
        t5: or what stands for the one that the network was trained with; None: it was trained without.
        cleaning: what happens to a caption first.
        precision: what the encoders compute in and keep their weights in.
    """

    clip_l: FrozenCLIP | None = None
    clip_g: FrozenCLIP | None = None
    t5: FrozenT5 | ZeroTokens | None = None
    cleaning: Cleaning = Cleaning.NOTHING
    precision: Precision = Precision.BFLOAT16

    def __post_init__(self):
        if not self.encoders:
            raise ValueError("PretrainedText: names no encoder; give clip_l, clip_g or t5")
        if self.clip_l is not None and self.clip_g is not None and self.clip_l.num_tokens != self.clip_g.num_tokens:
            raise ValueError(
                f"PretrainedText.clip_g.num_tokens={self.clip_g.num_tokens}: two CLIPs stand side by side, so it must "
                f"be as many as clip_l has, {self.clip_l.num_tokens}"
            )

    @property
    def encoders(self) -> dict[str, FrozenCLIP | FrozenT5]:
        """The encoders by the name of their field."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in ("clip_l", "clip_g", "t5")}
        return {name: encoder for name, encoder in fields.items() if isinstance(encoder, FrozenCLIP | FrozenT5)}

    @property
    def num_tokens(self) -> int:
        """Tokens of an embedding, padding included."""
        clip = self.clip_l or self.clip_g
        return (0 if clip is None else clip.num_tokens) + (0 if self.t5 is None else self.t5.num_tokens)


def embed(
    text: PretrainedText, networks: Mapping[str, CLIPTextModel | T5Encoder], tokens: Mapping[str, Tokens]
) -> Text:
    """Computes the embeddings of captions from token ids, float32.

    Args:
        networks, tokens: of each of `text.encoders`, by its name.
    """
    rows: list[Float[Array, "B L E"]] = []
    vectors: list[Float[Array, "B P"]] = []
    states = []
    for name in ("clip_l", "clip_g"):
        clip = text.encoders.get(name)
        if isinstance(clip, FrozenCLIP):
            network = networks[name]
            assert isinstance(network, CLIPTextModel), f"{name}: a FrozenCLIP is opened as a CLIPTextModel"
            output = network(jnp.asarray(tokens[name].ids))
            states.append(output.last if clip.state is HiddenState.LAST else output.penultimate)
            vectors.append(output.pooled)
    if states:
        rows.append(jnp.concatenate(states, axis=-1))
    num_tokens = jnp.full(len(next(iter(tokens.values())).ids), rows[0].shape[1] if rows else 0, jnp.int32)
    if isinstance(text.t5, ZeroTokens):
        rows.append(jnp.zeros((len(num_tokens), text.t5.num_tokens, text.t5.hidden_size), jnp.float32))
        num_tokens = num_tokens + text.t5.num_tokens
    elif text.t5 is not None:
        network = networks["t5"]
        assert isinstance(network, T5Encoder), "t5: a FrozenT5 is opened as a T5Encoder"
        ids, in_caption = (jnp.asarray(x) for x in tokens["t5"])
        states_t5 = network(ids, in_caption if text.t5.masked else None).astype(jnp.float32)
        length = in_caption if text.t5.masked else jnp.full_like(in_caption, ids.shape[1])
        states_t5 = jnp.where((jnp.arange(ids.shape[1]) < length[:, None])[..., None], states_t5, 0)
        vectors = vectors or [states_t5.sum(1) / length[:, None]]
        rows.append(states_t5)
        num_tokens = num_tokens + length
    width = max(part.shape[-1] for part in rows)
    filled = [jnp.pad(part.astype(jnp.float32), ((0, 0), (0, 0), (0, width - part.shape[-1]))) for part in rows]
    return Text(jnp.concatenate(filled, axis=1), num_tokens, jnp.concatenate(vectors, axis=-1).astype(jnp.float32))


def sd3_text(pipeline: str, *, num_t5_tokens: int = 256) -> PretrainedText:
    """Text encoders of SD3 and SD3.5 (2403.03206, section 4), from the folder of their diffusers pipeline."""
    return PretrainedText(
        clip_l=FrozenCLIP(model=f"{pipeline}/text_encoder", tokenizer=f"{pipeline}/tokenizer"),
        clip_g=FrozenCLIP(model=f"{pipeline}/text_encoder_2", tokenizer=f"{pipeline}/tokenizer_2"),
        t5=FrozenT5(
            model=f"{pipeline}/text_encoder_3",
            tokenizer=f"{pipeline}/tokenizer_3",
            num_tokens=num_t5_tokens,
            masked=False,
        ),
    )


def wan_text(pipeline: str) -> PretrainedText:
    """Text encoder of Wan 2.1 and 2.2 (2503.20314, section 4.2), from the folder of its diffusers pipeline."""
    return _t5_alone(pipeline, num_tokens=512, cleaning=Cleaning.REPAIRED)


def latte_text(pipeline: str) -> PretrainedText:
    """Text encoder of Latte and, with 120 tokens too, PixArt-alpha, from the folder of a diffusers pipeline."""
    return _t5_alone(pipeline, num_tokens=120, cleaning=Cleaning.LOWERCASE)


def _t5_alone(pipeline: str, *, num_tokens: int, cleaning: Cleaning) -> PretrainedText:
    t5 = FrozenT5(model=f"{pipeline}/text_encoder", tokenizer=f"{pipeline}/tokenizer", num_tokens=num_tokens)
    return PretrainedText(t5=t5, cleaning=cleaning)


def _check_tokens(encoder: FrozenCLIP | FrozenT5 | ZeroTokens) -> None:
    at_least(encoder, 3, "num_tokens", why="two stand around a caption")
