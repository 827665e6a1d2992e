"""Interface of networks that are exported as a PyTorch module in one file."""

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
    """A network that is exported as a torch module: module file, name table and config.

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
        """Name table of its parameters in the torch module."""

    @abc.abstractmethod
    def torch_config(self) -> dict[str, Any]:
        """Config of the torch module, as JSON data."""

    @abc.abstractmethod
    def pairs(self, params: Mapping[str, Array | np.ndarray], theirs: Any, shape: Shape) -> Iterator[Pair]:
        """Runs this network and the torch module on the same random input; yields pairs of layers, then of outputs.

        Args:
            theirs: the module, in evaluation mode and without gradients.
        """
