"""Compatibility of a checkpoint with a network: names, shapes and dtypes; a changed network is no damage."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax


class OtherNetwork(ValueError):
    """A checkpoint is intact, but of another network or optimizer."""


def check_fit(items: Mapping[str, Any], metadata: Mapping[str, Any], where: os.PathLike[str]) -> None:
    """Compares names, shapes and dtypes with those of the checkpoint `where` that has this metadata.

    Raises:
        OtherNetwork: naming what differs, and the remedy.
    """
    for item, tree in items.items():
        expected = named(tree, dtype_and_shape)
        # Before there were seals there were no shapes: names alone can be compared.
        saved = metadata.get("shapes", {}).get(item, dict.fromkeys(metadata["digests"].get(item, ())))
        differ = [
            f"{name} {saved.get(name, 'only here')} there, {expected.get(name, 'nothing')} here"
            for name in sorted(saved.keys() | expected.keys())
            if name not in saved or name not in expected or (saved[name] is not None and saved[name] != expected[name])
        ]
        if differ:
            raise OtherNetwork(
                f"{where} holds another network or optimizer: {item} has {some(differ)}; "
                "open it with the experiment it was trained with (RUN/experiment.json)"
            )


def dtype_and_shape(x: Any) -> list[Any]:
    """[dtype, shape], as in a checkpoint's metadata."""
    return [str(x.dtype), list(x.shape)]


def named(tree: Any, describe: Callable[[Any], Any]) -> dict[str, Any]:
    """`describe(leaf)` of each leaf, by the leaf's path as JAX writes it."""
    return {jax.tree_util.keystr(path): describe(v) for path, v in jax.tree_util.tree_leaves_with_path(tree)}


def some(names: Sequence[str]) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
