"""Subject of an evaluation: a task with the weights that are judged or sampled from."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Key

from dit_video.data.batch import Batch
from dit_video.distributed.sharding import even_batch, fetch, place_whole
from dit_video.nn.module import Definition, Params
from dit_video.tasks.media import Media
from dit_video.tasks.task import ClipShape, Function, Task


def compiled(definition: Definition, function: Function) -> Any:
    """A task's function, jitted: (params, frozen, batch, keys, shape) -> what it makes; `shape` is static.

    What it does not read stays an argument, since it stays in memory too.
    """

    def bound(params, frozen, batch, keys, shape):
        return function.call(definition.bind(params), frozen, batch, keys, shape)

    return jax.jit(bound, static_argnames="shape", keep_unused=True)


class Subject:
    """A task with weights: its functions ("generate", "validate"), each compiled once per batch shape.

    Attributes:
        description: what a card says of the subject beside its weights: run, codec, sampler, guidance, versions.
        paired: see `Task.paired`.
        functions: what it can do, by name (`Task.functions`).
        programs: the same, `compiled`.
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
        self.functions, self._frozen = task.functions(), frozen
        self.programs = {name: compiled(definition, function) for name, function in self.functions.items()}

    def with_weights(self, params: Params, *, step: int, ema: bool) -> "Subject":
        """The same subject with these weights from now on."""
        self.params, self.step, self.ema = params, step, ema
        return self

    def batch_size(self, at_least: int) -> int:
        """The smallest batch size from `at_least` on that the mesh splits evenly."""
        return even_batch(at_least, self.mesh)

    def __call__(
        self, name: str, batch: Batch, keys: Key[Array, "B"] | None = None, shape: ClipShape | None = None
    ) -> Any:
        """Calls the task's function `name` on a host batch; arrays [B ...] on the host.

        Every process passes the whole batch and gets the whole result.

        Raises:
            ValueError: the task has no such function.
        """
        self.require(name)
        # Keys as well: a function that reads no batch would else make all rows on every device.
        batch, keys = place_whole((batch, keys), self.mesh)
        with jax.set_mesh(self.mesh):
            result = self.programs[name](self.params, self._frozen, batch, keys, shape)
        return jax.tree.map(fetch, result)

    def require(self, name: str) -> None:
        """Raises ValueError where the task has no function `name`; says which it has."""
        if name not in self.functions:
            raise ValueError(f"this task has no function {name!r}; it has {', '.join(self.functions) or 'none'}")

    def show(self, name: str, rows: Any, columns: int, fps: float) -> Media | None:
        """Rows of what `name` made as one thing to look at; None where it makes numbers."""
        medium = self.functions[name].medium
        return None if medium is None else medium.of_rows(rows, columns, fps)
