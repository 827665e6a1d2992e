"""Weights bound to their task: what is evaluated, sampled from and judged."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key, UInt8

from dit_video.data.batch import Batch
from dit_video.distributed.sharding import even_batch, fetch, place_whole
from dit_video.nn.module import Definition, Params
from dit_video.tasks.task import ClipShape, Task


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

    def with_weights(self, params: Params, *, step: int, ema: bool) -> "Subject":
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
