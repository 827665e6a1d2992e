"""Prefixes that wrappers put before names of tensors: torch.compile, DDP, FSDP, training checkpoints, whole systems."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from dit_video.weights.names import Source

# Parts of names that are never a network's own, wherever they stand: of torch.compile, FSDP, activation checkpointing.
_ANYWHERE = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# What a network is called within a wrapper, a training program, or a file of a whole system.
_AVERAGED = frozenset({"ema", "ema_model", "model_ema", "ema_state_dict"})
_HOLDERS = _AVERAGED | {
    *("module", "_forward_module", "model", "network", "net", "state_dict", "model_state_dict"),
    *("transformer", "diffusion_model", "dit", "denoiser", "backbone", "generator"),
}
# Wrappers around wrappers, at most.
_MAX_HOLDERS = 8


class View(NamedTuple):
    """The tensors under a prefix, by their names without it.

    Attributes:
        beside: names of the tensors that are not under it.
    """

    prefix: str
    source: Source
    beside: tuple[str, ...] = ()

    @property
    def averaged(self) -> bool:
        """Whether the prefix says that these are an average of the weights (EMA)."""
        return not _AVERAGED.isdisjoint(self.prefix.split("."))

    @property
    def note(self) -> tuple[str, ...]:
        """What a user should know of it: a line, or none where nothing was left out."""
        if not self.prefix:
            return ()
        if not self.beside:
            return (f"read without the prefix {self.prefix} that all names have",)
        others = f"{len(self.beside)} other tensors, such as {self.beside[0]}"
        return (f"read what is under the prefix {self.prefix} of its names; not read: {others}",)


def views(source: Source) -> list[View]:
    """All tensors, and those under each prefix that may be a wrapper's, the longest prefix last."""
    source = _unwrapped(source)
    prefixes = {prefix for name in source for prefix in _held(name)} | ({_common(source)} - {""})
    return [View("", source), *(_under(prefix, source) for prefix in sorted(prefixes, key=lambda one: (len(one), one)))]


def _under(prefix: str, source: Source) -> View:
    inner = {name.removeprefix(prefix): stored for name, stored in source.items() if name.startswith(prefix)}
    return View(prefix, inner, tuple(name for name in source if not name.startswith(prefix)))


def _unwrapped(source: Source) -> Source:
    """The tensors without parts of names that wrappers put within them, unless two would have one name."""
    renamed = {".".join(p for p in name.split(".") if p not in _ANYWHERE): stored for name, stored in source.items()}
    return renamed if len(renamed) == len(source) else source


def _held(name: str) -> Iterator[str]:
    prefix = ""
    for part in name.split(".")[:-1][:_MAX_HOLDERS]:
        if part not in _HOLDERS:
            return
        prefix += f"{part}."
        yield prefix


def _common(source: Source) -> str:
    """The prefix of whole parts that all names have, whatever it is called."""
    places = zip(*(name.split(".")[:-1] for name in source))
    return "".join(f"{parts[0]}." for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, places))
