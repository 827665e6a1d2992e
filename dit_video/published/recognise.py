"""Recognition of published models: the list of families, by config.json or by tensor names and shapes."""

import dataclasses

from dit_video.published.autoencoder_kl import AutoencoderKLFamily
from dit_video.published.cogvideox_vae import CogVideoXVAEFamily
from dit_video.published.dit import ClassDiT
from dit_video.published.family import DenoiserFamily, Family
from dit_video.published.latte import InterleavedLatte
from dit_video.published.sd3 import SD3
from dit_video.published.vae_family import VAEFamily
from dit_video.published.wan import WanFamily
from dit_video.published.wan_vae import WanVAEFamily
from dit_video.tasks.task import Task
from dit_video.vae.codec import LatentCodec
from dit_video.vae.vae import VAEConfig
from dit_video.weights.names import unmatched
from dit_video.weights.source import Published
from dit_video.weights.wrappers import View, views

# Official weights of Latte have all that those of DiT have, and more: it is asked first.
DENOISERS: tuple[type[DenoiserFamily], ...] = (InterleavedLatte, ClassDiT, SD3, WanFamily)
VAES: tuple[type[VAEFamily], ...] = (AutoencoderKLFamily, WanVAEFamily, CogVideoXVAEFamily)


def recognise(published: Published, task: Task | None) -> Family | None:
    """Recognises the family of published weights; None where no family fits.

    Args:
        task: what the weights are for, where that is known: it says what official weights do not tell by themselves.

    Raises:
        ValueError: a family has such, but none like these was published; names the field.
    """
    families: tuple[type[Family], ...] = (*DENOISERS, *VAES)
    for family in families:
        recognised = (
            family.of_official(published.source, task)
            if published.config is None
            else family.of_diffusers(published.config)
        )
        if recognised is not None:
            return recognised.informed_by(published.source)
    return None


def recognise_within(published: Published, task: Task | None) -> tuple[Family, Published] | None:
    """As `recognise`, of tensors that may be under a wrapper's prefix: that under which all names are the network's.

    Returns:
        the family, and the tensors that are its own by their names without the prefix; where no prefix makes all fit,
        those that fit best. Of weights and their average (EMA) it is the average.

    Raises:
        ValueError: as `recognise`, or several prefixes have a whole network.
    """
    candidates: list[tuple[int, View, Family]] = []
    refused: list[ValueError] = []
    for view in views(published.source):
        try:
            family = recognise(dataclasses.replace(published, source=view.source), task)
        except ValueError as error:
            refused.append(error)
            continue
        if family is not None:
            wrong = sum(map(len, unmatched(family.table(), published.dialect, view.source)))
            candidates.append((wrong, view, family))
    if not candidates:
        if refused:
            raise refused[0]
        return None
    whole = [one for one in candidates if one[0] == 0]
    whole = [one for one in whole if one[1].averaged] or whole
    if len(whole) > 1:
        prefixes = ", ".join(view.prefix for _, view, _ in whole)
        raise ValueError(f"holds several networks of one kind, under {prefixes}: save one of them in a file of its own")
    _, view, family = whole[0] if whole else min(candidates, key=lambda one: one[0])
    return family, dataclasses.replace(published, source=view.source, notes=(*published.notes, *view.note))


def denoiser_family(task: Task) -> DenoiserFamily:
    """Finds the family of a denoising task's network.

    Raises:
        ValueError: no family has such a network; says why.
    """
    for family in DENOISERS:
        recognised = family.of_task(task)
        if isinstance(recognised, DenoiserFamily):
            return recognised
    raise ValueError("config.task.network: no class of diffusers is known for it")


def vae_family(codec: LatentCodec) -> VAEFamily:
    """Finds the family of a codec's VAE.

    Raises:
        ValueError: no family has such a VAE.
    """
    for family in VAES:
        recognised = family.of_codec(codec)
        if recognised is not None:
            return recognised
    raise ValueError(f"config.task.vae={type(codec.vae.config).__name__}: no class of diffusers is known for it")


def is_published_vae(config: VAEConfig) -> bool:
    """Whether a family has such a VAE, so that a whole pipeline of diffusers can be made with it."""
    return any(isinstance(config, family.config_type) for family in VAES)
