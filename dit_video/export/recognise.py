"""Which family a published network, or the network of a run, is of: the list of families."""

from dit_video.export.families.dit import ClassDiT
from dit_video.export.family import DenoiserFamily, Family
from dit_video.export.source import Published
from dit_video.tasks.task import Task
from dit_video.vae.codec import LatentCodec

DENOISERS: tuple[type[DenoiserFamily], ...] = (ClassDiT,)


def recognise(published: Published, task: Task) -> Family | None:
    """The network that weights are of; None where no family has such.

    Args:
        task: what the weights are for: it says what official weights do not tell by themselves.

    Raises:
        ValueError: a family has such, but none like these was published; names the field.
    """
    for family in DENOISERS:
        found = (
            family.of_official(published.source, task)
            if published.config is None
            else family.of_diffusers(published.config)
        )
        if found is not None:
            return found.informed_by(published.source)
    return None


def denoiser_family(task: Task) -> Family:
    """The family of a denoising task's network.

    Raises:
        ValueError: no family has such a network; says why.
    """
    for family in DENOISERS:
        found = family.of_task(task)
        if found is not None:
            return found
    raise ValueError("config.task.network: no class of diffusers is known for it")


def vae_family(codec: LatentCodec) -> Family:
    """The family of a codec's VAE.

    Raises:
        ValueError: no family has such a VAE.
    """
    raise ValueError(f"config.task.vae={type(codec.vae.config).__name__}: no class of diffusers is known for it")
