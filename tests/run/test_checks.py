"""What an experiment cannot be run with is said before anything is read."""

import dataclasses
import resource

import pytest
from toys import small_mesh, untrained

from dit_video.config.user_file import ExperimentError
from dit_video.experiment import Experiment
from dit_video.run import checks


@pytest.fixture
def experiment(autoencode) -> Experiment:
    return untrained(autoencode)


def test_rows_must_divide_over_devices_and_microbatches(experiment):
    checks.check_mesh(experiment, small_mesh(8))
    parts = dataclasses.replace(experiment, num_microbatches=4)
    with pytest.raises(ExperimentError, match=r"batch_size=16: must be a multiple of data x fsdp = 8 devices times"):
        checks.check_mesh(parts, small_mesh(8))
    checks.check_mesh(parts, small_mesh(4))


@pytest.mark.parametrize("axis", ["context", "tensor"])
def test_an_autoencoder_has_no_work_for_other_axes(experiment, axis):
    with pytest.raises(ExperimentError, match=rf"config\.mesh\.{axis}=4: an autoencoder is split along data and fsdp"):
        checks.check_fields(experiment, small_mesh(8, data=2, **{axis: 4}))


def test_compiler_options_are_those_of_the_devices_and_xla_knows_them(experiment):
    def with_options(**options) -> Experiment:
        return dataclasses.replace(experiment, compiler_options=options)

    checks.check_compiler_options(with_options(cpu={"xla_cpu_enable_fast_min_max": True}), small_mesh())
    checks.check_compiler_options(with_options(tpu={"xla_nonsense": True}), small_mesh())
    with pytest.raises(ExperimentError, match=r"config\.compiler_options\['cpu'\]: .*xla_nonsense"):
        checks.check_compiler_options(with_options(cpu={"xla_nonsense": True}), small_mesh())
    with pytest.raises(ValueError, match="compiler_options: gpus is no kind of device; cpu, gpu and tpu are"):
        with_options(gpus={})


def test_too_few_open_files_are_refused_before_anything_is_made():
    """F15: with 32 it was a traceback after minutes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    checks.check_open_files()
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        with pytest.raises(ExperimentError, match=r"allows 200 open files, and training takes 256 .*ulimit -n"):
            checks.check_open_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
