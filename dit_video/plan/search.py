"""Search over meshes, rematerialisation and gradient accumulation for the fastest configuration that fits a target.

A compilation takes seconds to minutes, so all ways are put in order by an estimate and only the first are compiled.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from dit_video.config.overrides import override
from dit_video.distributed.sharding import make_mesh
from dit_video.distributed.targets import GPU_MEMORY_VARIABLE, GPUS, Target
from dit_video.dit.network import Remat
from dit_video.experiment import Experiment
from dit_video.plan.compile import Memory, Plan, plan
from dit_video.plan.programs import PlannedProgram, TaskFunction
from dit_video.plan.quick_estimate import Candidate, Estimate, Estimator, doublings, remat_of
from dit_video.run.checks import check_mesh
from dit_video.run.shapes import balanced, largest

# A way must be faster than the best so far by this much to be worth its compilation.
_WORTH_COMPILING = 0.99
# What turns out to be impossible costs no compilation, but so many times the limit are enough.
_TRIES = 3
# A way is not compiled if the estimate of its memory is beyond what there is by more than it may err.
_WORTH_TRYING = 1.5
# Nobody has so many times the devices that he asked for.
_LARGEST_TARGET = 64
# Leaves room for what CUDA, cuDNN and NCCL take beside arrays.
_GPU_MEMORY_AT_MOST = 0.9


@dataclasses.dataclass(frozen=True)
class Trial:
    """A candidate configuration that was compiled.

    Attributes:
        overrides: none for the experiment as it is given.
        plan: None where it turned out to be impossible.
        error: why.
    """

    overrides: tuple[str, ...]
    plan: Plan | None
    error: str | None = None


def fastest(trials: Sequence[Trial]) -> Trial | None:
    """The fastest trial that fits, in the best case; among equals the one with the least to overlap, if any."""
    fitting = [(one.plan, one) for one in trials if one.plan is not None and one.plan.memory.fits]
    return min(fitting, key=lambda pair: (_seconds(pair[1]), pair[0].seconds_in_turn), default=(None, None))[1]


def search(experiment: Experiment, target: Target, *, limit: int) -> Iterator[Trial]:
    """Compiles at most `limit` candidates, the experiment itself first; ends early where no faster one is left.

    The ways are remat x accumulation x mesh: none changes what is computed. Of several shapes of batches the largest is
    compiled, and each must divide.

    Raises:
        ValueError: nothing is known of the devices that plans could be compared by.
    """
    if target.memory is None:
        raise ValueError(
            f"--fit: nothing is known of {target.name} that plans could be compared by; name an accelerator"
        )
    whole = balanced(experiment)
    # What fits with the most tokens in a batch fits with fewer.
    experiment = largest(whole)
    estimator = Estimator(experiment, target)
    trials: dict[Candidate, Trial] = {}
    candidate: Candidate | None = estimator.current()
    num_compiled = 0
    while candidate is not None and num_compiled < limit and len(trials) < _TRIES * limit:
        words = candidate.overrides(experiment) if trials else ()
        try:
            changed = override(whole, words)
            check_mesh(changed, make_mesh(changed.mesh, target.devices()), f"on {target.name}")
            compiled = plan(override(experiment, words), target)
        except ValueError as error:
            trials[candidate] = Trial(words, None, str(error))
        else:
            num_compiled += 1
            estimator.learn(candidate, compiled)
            trials[candidate] = Trial(words, compiled)
        yield trials[candidate]
        left = [estimator.estimate(other) for other in estimator.candidates() if other not in trials]
        candidate = _next(left, target.memory, fastest(list(trials.values())))


def _next(left: Sequence[Estimate], memory: int, best: Trial | None) -> Candidate | None:
    """Next candidate to compile: the fastest by estimate that should fit, if it should beat the best so far."""
    fitting = [one for one in left if one.memory <= memory]
    if best is not None:
        fitting = [one for one in fitting if one.seconds < _WORTH_COMPILING * _seconds(best)]
    elif not fitting:
        # Estimates err; the smallest is the last hope.
        return min(left, key=lambda one: one.memory).candidate if left else None
    return min(fitting, key=_by_time).candidate if fitting else None


def _by_time(one: Estimate) -> tuple[float, float, int, float]:
    """Sort key: time, then bytes sent, which are hidden best where compute binds."""
    return one.seconds, one.exchange, one.candidate.num_microbatches, one.memory


def _seconds(trial: Trial) -> float:
    assert trial.plan is not None, "only trials that fit are compared, and these have a plan"
    assert trial.plan.binding is not None, "`search` refuses targets without a known chip"
    return trial.plan.binding.seconds


@dataclasses.dataclass(frozen=True)
class Remedy:
    """A single change that lowers the peak memory of a plan that does not fit.

    Attributes:
        words: what to give on the command line, or set in the environment.
        peak: bytes, as compiled; None where it was not compiled.
        fits: None where it was not compiled.
    """

    words: tuple[str, ...]
    reason: str
    peak: int | None = None
    fits: bool | None = None


def remedies(
    experiment: Experiment, target: Target, compiled: Plan, program: PlannedProgram | None = None, *, limit: int
) -> Iterator[Remedy]:
    """Suggests single changes that lower peak memory, those that cost least first; compiled until one fits.

    At most `limit` are compiled, and none that an estimate rules out.

    Args:
        program: what `compiled` is a plan of; None for the train step.
    """
    more = list(_more_of_the_gpu(target, compiled.memory))
    yield from more
    if isinstance(program, TaskFunction):
        yield from _smaller_calls(experiment, target, compiled, program, limit=0 if more else limit)
    else:
        yield from _other_steps(experiment, target, compiled, limit=0 if more else limit)


def _more_of_the_gpu(target: Target, memory: Memory) -> Iterator[Remedy]:
    """More of a GPU's memory for JAX, where that is all it takes."""
    chip = target.chip
    assert chip is not None, f"{target.name}: memory is exceeded only on a known chip"
    if target.family in GPUS and memory.peak <= _GPU_MEMORY_AT_MOST * chip.hbm:
        words = (f"{GPU_MEMORY_VARIABLE}={_GPU_MEMORY_AT_MOST}",)
        yield Remedy(words, "JAX may take more of a GPU's memory; set it where the run starts", memory.peak, True)


def _smaller_calls(
    experiment: Experiment, target: Target, compiled: Plan, program: TaskFunction, *, limit: int
) -> Iterator[Remedy]:
    """Fewer clips in a call, then each of them split over more devices; ends where one fits.

    The weights of an opened run are whole on every device: where these are too large, nothing is suggested.
    """
    memory, num_compiled = compiled.memory, 0
    assert memory.hbm is not None, "a plan that does not fit has a memory limit"
    stays = sum(part.bytes for part in memory.parts if part.name != "batch") + memory.padding
    for words, reason, smaller, share in _smaller(experiment, target, compiled, program):
        if stays > memory.hbm or stays + share * (memory.peak - stays) > _WORTH_TRYING * memory.hbm:
            continue
        remedy = Remedy((*words, f"--batch_size={smaller.batch_size}"), reason)
        if num_compiled < limit:
            num_compiled += 1
            tried = plan(override(experiment, words), target, smaller).memory
            remedy = dataclasses.replace(remedy, peak=tried.peak, fits=tried.fits)
        yield remedy
        if remedy.fits:
            return


def _smaller(
    experiment: Experiment, target: Target, compiled: Plan, program: TaskFunction
) -> Iterator[tuple[tuple[str, ...], str, TaskFunction, float]]:
    """Overrides, the reason, the program, and its share of what a device's batch was; the largest first."""
    data, fsdp, context, tensor = compiled.mesh.values()
    ways = data * fsdp
    for rows in reversed([1, *doublings(1, compiled.clips // ways)][:-1]):
        smaller = dataclasses.replace(program, batch_size=rows * ways)
        yield (), "fewer clips at a time; they stay the same clips", smaller, rows * ways / compiled.clips
    remat, num_tokens = remat_of(experiment), experiment.task.num_tokens(experiment.data)
    if remat is None or num_tokens is None:
        return
    for parts in doublings(1, data // target.num_slices):
        if num_tokens % (context * parts) == 0:
            mesh = (data // parts, fsdp, context * parts, tensor)
            words = Candidate(remat, experiment.num_microbatches, mesh).overrides(experiment)
            smaller = dataclasses.replace(program, batch_size=ways // parts)
            yield words, f"{parts} devices share the tokens of a clip", smaller, ways / parts / compiled.clips


def _other_steps(experiment: Experiment, target: Target, compiled: Plan, *, limit: int) -> Iterator[Remedy]:
    """Changes of a train step that compute the same."""
    limit_bytes, fitted, num_compiled = compiled.memory.hbm, False, 0
    assert limit_bytes is not None, "a plan that does not fit has a memory limit"
    estimator = Estimator(experiment, target)
    estimator.learn(estimator.current(), compiled)
    for change, reason, on in [*_changes(estimator, compiled.memory), *_larger(estimator)]:
        words = change.overrides(experiment)
        where = () if on is estimator else (f"--target={on.target.name}",)
        remedy = Remedy((*where, *words), reason)
        if not fitted and num_compiled < limit and on.estimate(change).memory < _WORTH_TRYING * limit_bytes:
            num_compiled += 1
            tried = plan(override(experiment, words), on.target).memory
            remedy = dataclasses.replace(remedy, peak=tried.peak, fits=tried.fits)
            fitted = tried.fits
        yield remedy


def _changes(estimator: Estimator, memory: Memory) -> list[tuple[Candidate, str, Estimator]]:
    """Single changes of the experiment, with the reason why each helps."""
    current, slices, limit_bytes = estimator.current(), estimator.target.num_slices, memory.hbm or 0
    data, fsdp, context, tensor = current.mesh
    changes = []
    if current.remat in (Remat.NOTHING_RECOMPUTED, Remat.DOTS):
        reason = "keeps block inputs only; one more forward pass, a third more arithmetic at most"
        changes.append((dataclasses.replace(current, remat=Remat.FULL), reason, estimator))
    if current.remat is Remat.FULL:
        reason = "block inputs wait in the memory of the host; the way there is not in the roofline"
        changes.append((dataclasses.replace(current, remat=Remat.OFFLOAD), reason, estimator))
    rows = estimator.experiment.data.batch_size // (data * fsdp)
    finer = [dataclasses.replace(current, num_microbatches=n) for n in doublings(current.num_microbatches, rows)]
    if finer:
        enough = [change for change in finer if estimator.estimate(change).memory <= limit_bytes]
        reason = "less of the batch at a time, the same update; parameters are gathered for each part"
        changes.append(((enough or finer[-1:])[0], reason, estimator))
    split = dataclasses.replace(current, mesh=(slices, data * fsdp // slices, context, tensor))
    if data > slices and estimator.divides(split):
        reason = f"splits parameters, EMA and optimizer into {data // slices} times as many parts; more gathering"
        # Where most is what stays between steps, this is what helps most.
        stays = sum(part.bytes for part in memory.parts)
        changes.insert(0 if 2 * stays > limit_bytes else len(changes), (split, reason, estimator))
    return changes


def _larger(estimator: Estimator) -> Iterator[tuple[Candidate, str, Estimator]]:
    """The smallest larger target on which the experiment should fit with another mesh alone."""
    current, size = estimator.current(), estimator.target.num_devices
    while (target := estimator.target.doubled()) is not None and target.num_devices <= _LARGEST_TARGET * size:
        estimator = estimator.on(target)
        same = [
            estimator.estimate(other)
            for other in estimator.candidates()
            if (other.remat, other.num_microbatches) == (current.remat, current.num_microbatches)
        ]
        fitting = [one for one in same if one.memory <= (target.memory or 0)]
        if fitting:
            yield min(fitting, key=_by_time).candidate, "more devices", estimator
            return
