"""Networks of this package that leave it as a torch module in one file, which their users read and run."""

import abc
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

from dit_video.nn.module import Definition
from dit_video.published.family import Pair, Shape
from dit_video.weights.names import Table


class TorchModule(abc.ABC):
    """A network as its torch module has it: everything about it but its weights.

    Attributes:
        source: the file in export/torch/files that holds the module.
        module: what it is called in a folder: one that is imported, with `load(folder)`.
        weights: the file beside it with its tensors.
        field: of config.json, with what the module is built from.
    """

    source: ClassVar[str]
    module: ClassVar[str]
    weights: ClassVar[str]
    field: ClassVar[str]

    @abc.abstractmethod
    def define(self, dtype: DTypeLike = jnp.float32) -> Definition:
        """The network that is saved in a run."""

    @abc.abstractmethod
    def table(self) -> Table:
        """What its parameters are called there."""

    @abc.abstractmethod
    def torch_config(self) -> dict[str, Any]:
        """JSON data that the module is built from."""

    @abc.abstractmethod
    def pairs(self, params: Mapping[str, Array | np.ndarray], theirs: Any, shape: Shape) -> Iterator[Pair]:
        """Calls this network and the torch module with the same random input; layers first, outputs last.

        Args:
            theirs: the module, in evaluation mode and without gradients.
        """
