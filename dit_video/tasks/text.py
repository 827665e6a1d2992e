"""Text that is learnt and written: masked diffusion, block diffusion or autoregression on one network."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from dit_video.config.components import to_json
from dit_video.data.batch import Batch
from dit_video.data.dataset import Data
from dit_video.data.record import TokenRow
from dit_video.data.signals import examples_of
from dit_video.data.text_tokens import OPEN, PROMPT, TOKENS, TextTokens
from dit_video.data.tokenizers import Bytes, Tokenizer
from dit_video.diffusion.sampler import Sampler
from dit_video.diffusion.unmasking import Unmasking
from dit_video.dit.network import TransformerConfig
from dit_video.dit.text_transformer import TextTransformer, TextTransformerConfig
from dit_video.nn.module import Precision
from dit_video.tasks.factorization import Factorization, Masked, Prompt, Writer
from dit_video.tasks.media import Text
from dit_video.tasks.task import (
    GENERATE,
    LIKELIHOOD,
    REFINE,
    VALIDATE,
    ClipShape,
    Function,
    Learnt,
    Metrics,
    SamplingOptions,
    Task,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModel(Task):
    """A transformer learns text and writes it.

    Attributes:
        factorization: Masked(), Blocks(size=...) or Autoregressive(), with the same parameters.
        sampler: how masked text is written; of autoregression temperature and top-p count.
        num_draws: of what is masked, for the bound of held-out text; more make it less noisy.
    """

    network: TextTransformerConfig
    tokenizer: Tokenizer = Bytes()
    factorization: Factorization = Masked()
    sampler: Writer = Unmasking()
    num_draws: int = 16
    precision: Precision = Precision.FLOAT32

    def __post_init__(self):
        try:
            self.factorization.check_sampler(self.sampler)
        except ValueError as error:
            raise ValueError(f"LanguageModel.{error}") from error

    def check(self, data: Data, mesh: Mesh | None) -> None:
        signal = data.signals.get(TOKENS)
        if not isinstance(signal, TextTokens) or signal.tokenizer != self.tokenizer:
            raise ValueError(
                f"config.data.signals[{TOKENS!r}]={signal}: must be TextTokens of config.task.tokenizer="
                f"{self.tokenizer}; Data.of_text(TextSet(..., tokenizer=...)) makes it"
            )
        size, align = self.factorization.block_size, getattr(data.source, "align", None)
        if signal.length % size or (align is not None and align % size):
            raise ValueError(
                f"config.data.source.length={signal.length}, align={align}: must be multiples of "
                f"config.task.factorization.size={size}"
            )

    def init(self, rng: Key[Array, ""]) -> TextTransformer:
        return self.network.build(self.tokenizer.size, dtype=self.precision.dtype, rngs=nnx.Rngs(rng))

    def loss(
        self, model: TextTransformer, frozen: None, batch: Batch, rng: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        del frozen, step
        return self.factorization.loss(model, batch.require_signal(TOKENS), rng)

    def functions(self) -> Mapping[str, Function]:
        return {
            VALIDATE: Function(lambda model, frozen, batch, keys, shape: self.validate(model, batch, keys)),
            LIKELIHOOD: Function(lambda model, frozen, batch, keys, shape: self.likelihood(model, batch, keys)),
            GENERATE: Function(self.generate, _spelled(self.tokenizer)),
            REFINE: Function(self.refine, _spelled(self.tokenizer)),
        }

    def validate(self, model: TextTransformer, batch: Batch, keys: Key[Array, "B"]) -> Metrics:
        """Nats per token and bits per byte of each row; of autoregression exact, else a bound."""
        found = self.likelihood(model, batch, keys)
        tokens, num_bytes = (jnp.maximum(found[name], 1) for name in ("tokens", "bytes"))
        return {"nats_per_token": found["nats"] / tokens, "bits_per_byte": found["nats"] / num_bytes / math.log(2)}

    def likelihood(self, model: TextTransformer, batch: Batch, keys: Key[Array, "B"]) -> Metrics:
        """Negative log-likelihood of each row in nats, or its bound, with the row's tokens and bytes."""
        row = _on_device(batch, TOKENS)
        counted = row.documents > 0
        of_tokens = jnp.asarray(self.tokenizer.num_bytes())[jnp.maximum(row.tokens, 0)]
        return {
            "nats": self.factorization.nats(model, row, keys, self.num_draws),
            "tokens": counted.sum(-1),
            "bytes": jnp.where(counted, of_tokens, 0).sum(-1),
        }

    def generate(
        self, model: TextTransformer, frozen: None, batch: Batch, keys: Key[Array, "B"], shape: ClipShape
    ) -> Int[Array, "B L"]:
        """Writes what is open in each row of the batch, of shape[0] tokens; -1 is padding."""
        del frozen
        prompt = self._prompt(batch, shape[0])
        written = self.factorization.write(model, prompt, self.sampler, keys, keep=False)
        return jnp.where(prompt.documents > 0, written.x, OPEN)

    def refine(
        self, model: TextTransformer, frozen: None, batch: Batch, keys: Key[Array, "B"], shape: ClipShape
    ) -> Int[Array, "B steps L"]:
        """The same, as it stood after every pass; after the last it stays. The mask token is still to be written."""
        del frozen
        prompt = self._prompt(batch, shape[0])
        history = self.factorization.write(model, prompt, self.sampler, keys, keep=True).history
        assert history is not None, "it is kept"
        return jnp.swapaxes(jnp.where(prompt.documents > 0, history, OPEN), 0, 1)

    def _prompt(self, batch: Batch, length: int) -> Prompt:
        """Rows of `length` tokens: longer ones are cut, shorter ones go on with open tokens where they do not end."""
        row = _on_device(batch, PROMPT)
        more = max(0, length - row.tokens.shape[1])
        goes_on = jnp.repeat(row.documents[:, -1:], more, axis=1)
        tokens = jnp.pad(row.tokens, ((0, 0), (0, more)), constant_values=OPEN)[:, :length]
        documents = jnp.concatenate([row.documents, goes_on], axis=1)[:, :length]
        masked = (tokens == OPEN) & (documents > 0)
        return Prompt(jnp.where(tokens == OPEN, self.tokenizer.size, tokens), masked, documents)

    @property
    def reads(self) -> tuple[str, ...]:
        return (PROMPT,)

    def check_prompt(self, signals: Mapping[str, Any]) -> None:
        row = signals[PROMPT]
        self.factorization.check_prompt((np.asarray(row.tokens) != OPEN) & (np.asarray(row.documents) > 0))

    def with_sampling(self, options: SamplingOptions) -> "LanguageModel":
        """Another order of writing, with its own default of tokens a pass."""
        order = options.sampler
        if order is None or issubclass(order, Sampler):
            super().with_sampling(options)
            return self
        super().with_sampling(options._replace(sampler=None))
        if not isinstance(self.sampler, Unmasking):
            raise ValueError(f"--sampler: config.task.sampler={self.sampler} has no order; leave it out")
        return dataclasses.replace(self, sampler=dataclasses.replace(self.sampler, order=order()))

    def describe(self) -> Mapping[str, Any]:
        about = {"factorization": to_json(self.factorization), "sampler": to_json(self.sampler)}
        return {**about, "num_tokens": self.tokenizer.size}

    def example(self, data: Data, batch_size: int) -> Batch:
        return Batch(signals=examples_of(data.signals, batch_size))

    def random(self, rng: np.random.Generator, batch: Batch) -> Batch:
        shape = batch.signals[TOKENS].tokens.shape
        tokens = rng.integers(0, self.tokenizer.size, shape).astype(np.int32)
        # Two documents a row.
        documents = np.broadcast_to(1 + (np.arange(shape[1]) >= shape[1] // 2), shape).astype(np.int32)
        return batch._replace(signals={**batch.signals, TOKENS: TokenRow(tokens, documents)})

    def num_tokens(self, data: Data) -> int:
        return data.clips.num_frames

    def in_float32(self) -> "LanguageModel":
        return dataclasses.replace(self, precision=Precision.FLOAT32)

    def learnt(self) -> Learnt:
        return Learnt(
            {"network": self.network.function}, {"factorization": self.factorization, "tokenizer": self.tokenizer}
        )

    @property
    def backbone(self) -> TransformerConfig:
        return self.network

    def with_backbone(self, backbone: TransformerConfig) -> "LanguageModel":
        return dataclasses.replace(self, network=backbone)


def _on_device(batch: Batch, name: str) -> TokenRow:
    row = batch.require_signal(name)
    return TokenRow(jnp.asarray(row.tokens), jnp.asarray(row.documents))


@functools.cache
def _spelled(tokenizer: Tokenizer) -> type[Text]:
    """Texts of rows of tokens."""

    class Spelled(Text):
        @classmethod
        def of_rows(cls, rows: Any, columns: int, fps: float) -> "Spelled":
            flat = np.asarray(rows).reshape(-1, rows.shape[-1])
            return cls(tuple(_spell(tokenizer, row) for row in flat))

    return Spelled


def _spell(tokenizer: Tokenizer, row: Int[np.ndarray, "L"]) -> str:
    """The text of a row; masks are shown as blocks."""
    row = row[row != OPEN]
    cuts = np.flatnonzero(np.diff(row == tokenizer.size)) + 1
    parts = np.split(row, cuts)
    spelled = ("▒" * len(p) if len(p) and p[0] == tokenizer.size else tokenizer.decode(p) for p in parts)
    return "".join(spelled)
