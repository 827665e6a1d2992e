"""Model card of a PyTorch export: a runnable sampling program, inputs and outputs."""

from dit_video.diffusion.objective import Gaussian
from dit_video.diffusion.path import Linear
from dit_video.diffusion.prediction import Velocity
from dit_video.export.diffusers_folder import provenance
from dit_video.export.weights import Content
from dit_video.published.torch_condition import NUM_CLIPS, torch_condition
from dit_video.tasks.latent_diffusion import Denoise

_DENOISER_FILES = {"model.py": "the denoiser", "model.safetensors": "its weights"}
_VAE_FILES = {
    "vae.py": "the autoencoder",
    "vae.safetensors": "its weights, and the mean and standard deviation of its latents per channel",
}
_CONFIG_FILE = {"config.json": "what they are built from, the run that they come from, its task and objective"}


def model_card(content: Content, *, with_vae: bool) -> str:
    """Makes README.md; its block of Python is a whole program, to be run in the folder.

    Args:
        with_vae: whether the folder has the autoencoder.
    """
    task = None if content.denoiser is None else content.denoiser.task
    files = ({} if task is None else _DENOISER_FILES) | (_VAE_FILES if with_vae else {}) | _CONFIG_FILE
    program = _vae_program(content) if task is None else _denoiser_program(content, task, with_vae)
    notes = ([] if task is None else _denoiser_notes(content, task)) + _vae_notes(content, with_vae)
    lines = [
        "---\nlibrary_name: pytorch\ntags: [dit-video]\n---",
        f"# {content.origin.run}\n",
        provenance(content.origin, "torch"),
        "PyTorch modules in files of their own, to be read; they need torch from 2.4 on and safetensors alone.\n",
        "| file | |\n|---|---|",
        *(f"| `{name}` | {what} |" for name, what in files.items()),
        "\n```python",
        *program,
        "```\n",
        *notes,
    ]
    return "\n".join(lines) + "\n"


def is_rectified_flow(objective: Gaussian) -> bool:
    """Whether an objective is rectified flow, as `euler` of export/torch/files/dit.py samples it."""
    return isinstance(objective.path, Linear) and isinstance(objective.prediction, Velocity)


def _vae_program(content: Content) -> list[str]:
    T, H, W = content.clip
    return [
        "import torch",
        "import vae",
        "",
        'codec = vae.load(".")',
        f"video = torch.randint(0, 256, ({NUM_CLIPS}, 3, {T}, {H}, {W}), dtype=torch.uint8)",
        "with torch.no_grad():",
        "    latents = codec.whiten(codec.encode(video / 127.5 - 1))",
        "    pixels = codec.decode(latents)",
    ]


def _denoiser_program(content: Content, task: Denoise, with_vae: bool) -> list[str]:
    t, h, w, c = content.latent_shape
    noise = f"torch.randn({NUM_CLIPS}, {c}, {t}, {h}, {w})"
    start = ["import model", "import torch", *(["import vae"] if with_vae else []), "", 'network = model.load(".")']
    there = torch_condition(task.condition)
    start += [] if there is None else there.program(content.caption_bytes)
    if not is_rectified_flow(task.objective):
        return [*start, f"x_t, t = {noise}, torch.rand({NUM_CLIPS})", f"prediction = {_call('x_t', task)}"]
    shift = 1.0 if task.objective.shift is None else task.objective.shift.factor(t * h * w)
    steps = [f"times = torch.linspace(1, 0, {task.sampler.num_steps + 1})"]
    if shift != 1:
        steps.append(f"times = {shift} * times / ({shift} * times + (1 - times))")
    program = [*start, "", "", "def velocity(x, t):", *_velocity(task), "", "", *steps]
    program.append(f"latents = model.euler(velocity, {noise}, times)")
    if with_vae:
        program += ["with torch.no_grad():", '    pixels = vae.load(".").decode(latents)']
        program.append("video = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)")
    return program


def _velocity(task: Denoise) -> list[str]:
    guidance = task.guidance
    if task.condition is None or guidance.scale == 1:
        return [f"    return {_call('x', task)}"]
    low, high = guidance.interval
    outside = [f"    if not {low} <= t[0] <= {high}:", "        return conditional"]
    return [
        f"    conditional = {_call('x', task)}",
        *([] if (low, high) == (0.0, 1.0) else outside),
        f"    unconditional = {_call('x', task, null=True)}",
        f"    return unconditional + {guidance.scale} * (conditional - unconditional)",
    ]


def _call(x: str, task: Denoise, *, null: bool = False) -> str:
    there = torch_condition(task.condition)
    if there is None:
        return f"network({x}, t)"
    return f"network({x}, t, {there.keyword}={'null' if null else there.keyword})"


def _denoiser_notes(content: Content, task: Denoise) -> list[str]:
    t, h, w, c = content.latent_shape
    there = torch_condition(task.condition)
    outputs = ", then as many channels that its variance is made of" if task.network.learns_variance else ""
    notes = [
        f"- Latents, `[b {c} t h w]`: whitened, of zero mean and unit variance per channel; trained at (t, h, w) = "
        f"{(t, h, w)}.",
        f"- `t`: noise level, 0 for data and 1 for noise, `[b]` or one for each frame `[b t]`.{_levels(task)}",
        f"- What the network returns: what the objective asks for{outputs}.",
    ]
    if there is not None:
        notes.append(there.note(content.caption_bytes))
    return [*notes, f"- Objective: `{task.objective}`"]


def _levels(task: Denoise) -> str:
    return "" if task.objective.per_frame else " It was trained with one for each clip."


def _vae_notes(content: Content, with_vae: bool) -> list[str]:
    if not with_vae:
        kind = type(content.codec.vae).__name__
        return [f"- The latents are those of a {kind}: export the run that holds it with `--format diffusers`."]
    compression = " x ".join(map(str, content.codec.vae.config.compression))
    return [
        f"- Pixels, `[b 3 T H W]`: in [-1, 1]; the autoencoder compresses {compression} (frames, rows, columns), the "
        f"first frame alone; trained at (T, H, W) = {content.clip}."
    ]
