"""The protocols that training and evaluation know a task by, and weights bound to their task.

A task is the only place where a network, an objective and a batch meet. The loop never learns what is inside.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, UInt8

from dit_video.arrays import Video
from dit_video.data.batch import Batch, Examples, Split
from dit_video.data.loader import held_out_batches, held_out_digest
from dit_video.data.text_cache import Embeddings
from dit_video.data.transforms import ClipTransform
from dit_video.nn.module import Definition, Params
from dit_video.sharding import even_batch, fetch, place_whole

Metrics = dict[str, Array]
# (frames, height, width) of a clip in pixels.
ClipShape = tuple[int, int, int]


def purpose_key(seed: int | Int[Array, ""], purpose: str, step: int | Int[Array, ""] = 0) -> Key[Array, ""]:
    """The key for one purpose at one step. Nothing is split and stored, so resuming is exact by construction."""
    # A stable number for the name: Python's hash changes from process to process.
    number = int.from_bytes(purpose.encode(), "little") % (2**31 - 1)
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), step)


def clip_keys(seed: int, clips: Sequence[int] | np.ndarray, purpose: str = "sample") -> Key[Array, "B"]:
    """One key for each of the clips numbered `clips`: that of clip i is a function of (seed, purpose, i), whatever the
    batch.
    """
    key = purpose_key(seed, purpose)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(np.asarray(clips)))


@runtime_checkable
class Task(Protocol):
    """What is learnt. Values of this protocol are fields of an experiment.

    `frozen` is whatever trained parts the task uses but does not train (a codec); it travels as an argument, so
    that its weights are never baked into a compiled program. `model` is the module that `init` makes; its type, and
    that of `frozen`, are the task's own business.
    """

    @property
    def paired(self) -> bool:
        """Whether `generate` is shown pixels of each clip of the batch, so that those and its own are pairs."""
        ...

    def init(self, rng: Key[Array, ""]) -> nnx.Module:
        """The network with fresh parameters."""
        ...

    def loss(
        self, model: Any, frozen: Any, batch: Batch, rng: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss of one batch and scalars to record."""
        ...

    def validate(self, model: Any, frozen: Any, batch: Batch, rngs: Key[Array, "B"]) -> Metrics:
        """Errors on held-out clips, one value per clip `[B]`; clip i uses rngs[i] alone, the same at every call."""
        ...

    def generate(self, model: Any, frozen: Any, batch: Batch, rngs: Key[Array, "B"], shape: ClipShape) -> Video:
        """Clips of `shape` made for what the task conditions on in `batch`; clip i uses rngs[i] alone."""
        ...

    def reconstruct(self, model: Any, frozen: Any, batch: Batch) -> Video:
        """The clips of `batch` through the codec alone: the best that `generate` can look."""
        ...


class Subject:
    """Weights bound to their task: what is evaluated. Each function is compiled once per batch shape.

    Attributes:
        description: what a card says of the subject beside its weights: run, codec, sampler, guidance, versions.
        paired: see `Task.paired`.
        params, step, ema: the weights in hand, where they come from, and whether they are the moving average.
    """

    def __init__(
        self,
        task: Task,
        definition: Definition,
        frozen: Any,
        mesh: Mesh,
        description: Mapping[str, Any],
    ):
        self.mesh, self.description, self.paired = mesh, description, task.paired
        self._frozen = frozen

        def validate(params, frozen, batch, rngs):
            return task.validate(definition.bind(params), frozen, batch, rngs)

        def generate(params, frozen, batch, rngs, shape):
            return task.generate(definition.bind(params), frozen, batch, rngs, shape)

        def reconstruct(params, frozen, batch):
            return task.reconstruct(definition.bind(params), frozen, batch)

        self._validate = jax.jit(validate)
        self._generate = jax.jit(generate, static_argnames="shape")
        self._reconstruct = jax.jit(reconstruct)

    def hold(self, params: Params, *, step: int, ema: bool) -> "Subject":
        """The same subject with these weights from now on."""
        self.params, self.step, self.ema = params, step, ema
        return self

    def batch_size(self, wanted: int) -> int:
        """The least batch of at least `wanted` rows that the mesh splits evenly."""
        return even_batch(wanted, self.mesh)

    # In the methods below every process gives the whole batch and gets the whole result.

    def validate(self, batch: Batch, rngs: Key[Array, "B"]) -> dict[str, np.ndarray]:
        """Errors per clip of a host batch."""
        with jax.set_mesh(self.mesh):
            errors = self._validate(self.params, self._frozen, place_whole(batch, self.mesh), rngs)
        return {name: fetch(value) for name, value in errors.items()}

    def generate(self, batch: Batch, rngs: Key[Array, "B"], shape: ClipShape) -> UInt8[np.ndarray, "B T H W C"]:
        """Clips for the conditions of a host batch, on the host."""
        with jax.set_mesh(self.mesh):
            video = self._generate(self.params, self._frozen, place_whole(batch, self.mesh), rngs, shape)
        return fetch(video)

    def reconstruct(self, batch: Batch) -> UInt8[np.ndarray, "B T H W C"]:
        """The clips of a host batch through the codec, on the host."""
        with jax.set_mesh(self.mesh):
            return fetch(self._reconstruct(self.params, self._frozen, place_whole(batch, self.mesh)))


@dataclasses.dataclass(frozen=True)
class Report:
    """What an evaluator found.

    Attributes:
        scalars: values by name, for the record and the curves.
        media: videos `uint8 [T H W 3]` by name, to look at.
        cards: numbers that carry their protocol, by name.
    """

    scalars: Mapping[str, float] = dataclasses.field(default_factory=dict)
    media: Mapping[str, UInt8[np.ndarray, "T H W 3"]] = dataclasses.field(default_factory=dict)
    cards: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class EvaluationData:
    """Clips to judge by, the same ones at every call.

    Attributes:
        batches: (split, num_clips, batch_size) -> batches of clips and how many of their rows are real.
        digest: (split, num_clips) -> sha256 of what decides these clips: stored content, first frames, cut.
        splits: which of them there are.
        shape: (T, H, W) of a clip.
        fps: frames per second of a clip.
        protocol: how clips are cut: stride, size, crop.
        references: where the clips come from, by split or otherwise; named on cards, no part of what is compared.
    """

    batches: Callable[[Split, int, int], Iterator[tuple[Batch, int]]]
    digest: Callable[[Split, int], str]
    splits: tuple[Split, ...]
    shape: ClipShape
    fps: float
    protocol: Mapping[str, Any]
    references: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        examples: Mapping[Split, Examples],
        transforms: Mapping[Split, ClipTransform],
        *,
        seed: int,
        references: Mapping[str, Any],
        caption_bytes: int | None = None,
        texts: Embeddings | None = None,
    ) -> "EvaluationData":
        """Clips cut from records; `seed` decides which windows, `caption_bytes` and `texts` are as in `collate`."""

        def batches(split: Split, num_clips: int, batch_size: int) -> Iterator[tuple[Batch, int]]:
            return held_out_batches(
                examples[split],
                transforms[split],
                num_clips=num_clips,
                batch_size=batch_size,
                seed=seed,
                caption_bytes=caption_bytes,
                texts=texts,
            )

        @functools.cache
        def digest(split: Split, num_clips: int) -> str:
            return held_out_digest(examples[split], transforms[split], num_clips=num_clips, seed=seed)

        cut = transforms[Split.HELD_OUT]
        return cls(
            batches=batches,
            digest=digest,
            splits=tuple(examples),
            shape=(cut.num_frames, *cut.size),
            fps=examples[Split.HELD_OUT][0].fps / cut.stride,
            protocol=cut.protocol,
            references=references,
        )


@runtime_checkable
class Evaluator(Protocol):
    """Judges a subject every `every` steps. Values of this protocol are fields of an experiment."""

    @property
    def every(self) -> int: ...

    def __call__(self, subject: Subject, data: EvaluationData, seed: int) -> Report: ...
