"""Search for configurations that fit a target, the fastest of them, and remedies for plans that do not fit."""

import dataclasses

import pytest
from toys import untrained

from dit_video.config.overrides import override
from dit_video.distributed.hardware import Chip
from dit_video.distributed.sharding import MeshShape
from dit_video.distributed.targets import Target, parse_target
from dit_video.dit.network import Remat
from dit_video.experiment import Experiment
from dit_video.plan.compile import plan
from dit_video.plan.quick_estimate import Candidate, Estimator
from dit_video.plan.search import fastest, remedies, search
from dit_video.tasks.autoencode import Autoencode


def target(hbm: int) -> Target:
    """Eight fake devices with so much memory, on which arithmetic takes longest."""
    chip = Chip(kind="toy", hbm=hbm, flops=1e6, hbm_bandwidth=1e12, links=1e12, network=None)
    return dataclasses.replace(parse_target("cpu:8"), chip=chip)


@pytest.fixture(scope="module")
def experiment(denoise) -> Experiment:
    return untrained(denoise, size=(32, 32), batch_size=64)


@pytest.fixture(scope="module")
def too_large(experiment):
    """The experiment compiled on devices that lack a little."""
    compiled = plan(experiment, target(10**9))
    limit = int(0.9 * compiled.memory.peak)
    return target(limit), dataclasses.replace(compiled, memory=dataclasses.replace(compiled.memory, hbm=limit))


@pytest.mark.slow
def test_remedies_are_compiled_until_one_fits(experiment, too_large):
    devices, compiled = too_large
    cures = list(remedies(experiment, devices, compiled, limit=3))
    fitting = [cure for cure in cures if cure.fits]
    assert len(fitting) == 1
    (cure,) = fitting
    again = plan(override(experiment, cure.words), devices)
    assert again.memory.fits
    assert again.memory.peak == cure.peak
    after = cures[cures.index(cure) + 1 :]
    assert [(one.peak, one.fits) for one in after] == [(None, None)] * len(after)


@pytest.mark.slow
def test_no_more_remedies_are_compiled_than_asked_for(experiment, too_large):
    devices, compiled = too_large
    cures = list(remedies(experiment, devices, compiled, limit=0))
    assert {word.partition("=")[0] for cure in cures for word in cure.words} == {
        "--config.mesh.data",
        "--config.mesh.fsdp",
        "--config.task.network.remat",
        "--config.num_microbatches",
    }
    assert all(cure.fits is None for cure in cures)


@pytest.mark.slow
def test_a_search_begins_with_what_is_given_and_stays_where_nothing_is_faster(experiment):
    """Where everything fits, nothing beats what computes nothing twice."""
    (only,) = search(experiment, target(10**9), limit=4)
    assert only.overrides == ()
    assert fastest([only]) is only


@pytest.mark.slow
def test_a_search_finds_what_fits(experiment, too_large):
    devices, _ = too_large
    first, *rest = search(experiment, devices, limit=3)
    assert first.plan is not None
    assert not first.plan.memory.fits
    assert fastest([first]) is None
    best = fastest(rest)
    assert best is not None
    assert best.plan is not None
    assert best.plan.memory.peak <= devices.memory


def test_a_search_ends_at_its_limit_with_nothing(experiment):
    (only,) = search(experiment, target(1000), limit=1)
    assert fastest([only]) is None


def test_candidates_divide_what_they_split(experiment):
    candidates = Estimator(experiment, target(10**9)).candidates()
    assert {candidate.remat for candidate in candidates} == set(Remat)
    for candidate in candidates:
        data, fsdp, context, tensor = candidate.mesh
        assert data * fsdp * context * tensor == 8
        assert 64 % (data * fsdp * candidate.num_microbatches) == 0
        assert 2 % tensor == 0  # heads
    assert (1, 4, 1, 2) in {candidate.mesh for candidate in candidates}


def test_an_autoencoder_is_split_along_data_and_fsdp_only(experiment, vae_config):
    codec = dataclasses.replace(experiment, task=Autoencode(vae=vae_config))
    meshes = {candidate.mesh for candidate in Estimator(codec, target(10**9)).candidates()}
    assert meshes == {(8, 1, 1, 1), (4, 2, 1, 1), (2, 4, 1, 1), (1, 8, 1, 1)}


def test_what_was_compiled_corrects_the_estimate(experiment, too_large):
    devices, compiled = too_large
    estimator = Estimator(experiment, devices)
    estimator.learn(estimator.current(), compiled)
    assert estimator.estimate(estimator.current()).memory == pytest.approx(compiled.memory.peak)


def test_overrides_say_what_differs(experiment):
    current = dataclasses.replace(experiment, mesh=MeshShape(data=-1))
    assert Candidate(Remat.NOTHING_RECOMPUTED, 1, (8, 1, 1, 1)).overrides(current) == ()
    way = Candidate(Remat.FULL, 2, (4, 2, 1, 1))
    words = way.overrides(current)
    assert words == (
        "--config.mesh.data=4",
        "--config.mesh.fsdp=2",
        "--config.num_microbatches=2",
        "--config.task.network.remat=full",
    )
    changed = override(current, words)
    assert changed.mesh == MeshShape(data=4, fsdp=2)
    assert way.overrides(changed) == ()


def test_devices_of_which_nothing_is_known_cannot_be_compared(experiment):
    with pytest.raises(ValueError, match="--fit: nothing is known of cpu:8"):
        next(search(experiment, parse_target("cpu:8"), limit=1))
