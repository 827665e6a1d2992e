"""Conditions as the torch module of our DiT takes them (export/torch/files/dit.py): what it is built from, called with
and told in a model card.
"""

import abc
import dataclasses
from typing import Any, Generic, TypeVar

import jax.numpy as jnp
import numpy as np

from dit_video.arrays import Text
from dit_video.data.captions import BEGIN
from dit_video.dit.condition import ClassCondition, Condition, EmbeddedText, TextCondition

# Bytes of the captions that are compared, and clips of a comparison or of the program in a model card.
_CAPTION_BYTES, NUM_CLIPS = 12, 2

Kind = TypeVar("Kind", bound=Condition)


@dataclasses.dataclass(frozen=True)
class TorchCondition(abc.ABC, Generic[Kind]):
    """A condition there.

    Attributes:
        keyword: of the torch module's call.
    """

    condition: Kind
    keyword = ""

    @property
    def num_classes(self) -> int | None:
        return None

    @property
    def text_size(self) -> int | None:
        """Width of the tokens that blocks attend to."""
        return None

    @property
    def encoder(self) -> dict[str, int] | None:
        """Sizes of the text encoder that is trained along."""
        return None

    @abc.abstractmethod
    def random(self, rng: np.random.Generator) -> tuple[Any, dict[str, Any]]:
        """Something for each of NUM_CLIPS clips, the null condition and padding among it: for ours, and for theirs."""

    @abc.abstractmethod
    def program(self, caption_bytes: int | None) -> list[str]:
        """Lines of Python that make what two clips are conditioned on, under the name of `keyword`, and `null`."""

    @abc.abstractmethod
    def note(self, caption_bytes: int | None) -> str:
        """What the argument means."""


class _Class(TorchCondition[ClassCondition]):
    keyword = "label"

    @property
    def num_classes(self) -> int:
        return self.condition.num_classes

    def random(self, rng: np.random.Generator) -> tuple[Any, dict[str, Any]]:
        import torch

        label = rng.integers(0, self.num_classes, NUM_CLIPS)
        label[-1] = self.num_classes
        return jnp.asarray(label, jnp.int32), {self.keyword: torch.from_numpy(label)}

    def program(self, caption_bytes: int | None) -> list[str]:
        last = self.num_classes - 1
        return [f"label = torch.tensor([0, {last}])", f"null = torch.full_like(label, {self.num_classes})"]

    def note(self, caption_bytes: int | None) -> str:
        return f"- `label`: 0 to {self.num_classes - 1}, and {self.num_classes} for none."


class _Caption(TorchCondition[TextCondition]):
    keyword = "caption"

    @property
    def text_size(self) -> int:
        return self.condition.hidden_size

    @property
    def encoder(self) -> dict[str, int]:
        return {name: getattr(self.condition, name) for name in ("hidden_size", "depth", "num_heads")}

    def random(self, rng: np.random.Generator) -> tuple[Any, dict[str, Any]]:
        import torch

        caption = rng.integers(1, BEGIN, (NUM_CLIPS, _CAPTION_BYTES), np.uint8)
        caption[:, 0] = BEGIN
        caption[0, -_CAPTION_BYTES // 3 :] = 0
        caption[-1, 1:] = 0
        return jnp.asarray(caption), {self.keyword: torch.from_numpy(caption)}

    def program(self, caption_bytes: int | None) -> list[str]:
        return [
            f'caption = model.encode_captions(["what is seen", "and heard"], {caption_bytes})',
            f'null = model.encode_captions(["", ""], {caption_bytes})',
        ]

    def note(self, caption_bytes: int | None) -> str:
        return f"- `caption`: trained with {caption_bytes} bytes; an empty one stands for no text."


class _Embedded(TorchCondition[EmbeddedText]):
    keyword = "text"

    @property
    def text_size(self) -> int:
        return self.condition.hidden_size

    def random(self, rng: np.random.Generator) -> tuple[Any, dict[str, Any]]:
        import torch

        L = self.condition.num_tokens
        tokens = rng.standard_normal((NUM_CLIPS, L, self.condition.hidden_size), np.float32)
        num_tokens = np.linspace(L, 1, NUM_CLIPS).astype(np.int32)
        pooled = jnp.zeros((NUM_CLIPS, self.condition.pooled_size))
        ours = Text(jnp.asarray(tokens), jnp.asarray(num_tokens), pooled)
        return ours, {self.keyword: (torch.from_numpy(tokens), torch.from_numpy(num_tokens))}

    def program(self, caption_bytes: int | None) -> list[str]:
        L = self.condition.num_tokens
        tokens = f"torch.zeros({NUM_CLIPS}, {L}, {self.condition.hidden_size})"
        return [
            "# In place of zeros: what the text encoder makes of captions, and of empty ones.",
            f"text = {tokens}, torch.tensor([{L}, {L}])",
            f"null = {tokens}, torch.tensor([1, 1])",
        ]

    def note(self, caption_bytes: int | None) -> str:
        return (
            "- `text`: tokens of a frozen text encoder, and how many of them are no padding. `task.text` in "
            "config.json says which encoder it was trained with."
        )


def torch_condition(condition: Condition | None) -> TorchCondition | None:
    """A condition there; None where there is none.

    Raises:
        ValueError: the torch module takes no such condition.
    """
    match condition:
        case None:
            return None
        case ClassCondition():
            return _Class(condition)
        case TextCondition():
            return _Caption(condition)
        case EmbeddedText():
            return _Embedded(condition)
    raise ValueError(
        f"config.task.condition={condition}: the torch module takes ClassCondition, TextCondition, EmbeddedText or None"
    )
