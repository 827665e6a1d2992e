"""The programs on disk are the networks, at any batch size, without this package."""

import dataclasses
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from dit_video.export.folder import README, write_readme
from dit_video.export.stablehlo import DECODER, DENOISER, write_programs
from dit_video.export.weights import ExportMismatch, load
from dit_video.vae.codec import LatentCodec

# Runs what README.md says, in the folder it lies in.
FRESH_PROCESS = """
import sys, numpy
given = dict(numpy.load("given.npz"))
exec(open("code.py").read(), given)
assert not {"dit_video", "flax"} & set(sys.modules), "needs more than JAX"
numpy.savez("found.npz", prediction=given["prediction"], video=given["video"])
"""


@pytest.fixture(scope="module")
def programs(exported, content):
    """The export with its programs, which are compared when written."""
    compared = write_programs(content, exported)
    assert [c.file for c in compared] == [DENOISER, DECODER]
    assert all(c.error <= c.tolerance for c in compared)
    return exported


@pytest.mark.slow
def test_the_readme_is_enough_to_run_them_in_a_fresh_process(programs, content):
    write_readme(programs, load(programs).config)
    code = re.findall(r"```python\n(.*?)```", (programs / README).read_text(), re.DOTALL)[0]
    assert len(code.splitlines()) == 5
    rng = np.random.default_rng(0)
    x_t, latents = rng.standard_normal((2, 2, 2, 4, 4, 4), np.float32)
    inputs = {"x_t": x_t, "t": rng.random((2, 1), np.float32), "label": np.int32([1, 3])}
    np.savez(programs / "given.npz", **inputs, latents=latents)
    (programs / "code.py").write_text(code)
    subprocess.run([sys.executable, "-c", FRESH_PROCESS], cwd=programs, check=True)
    actual = np.load(programs / "found.npz")
    expected = jax.jit(lambda network, inputs: network(*inputs))(content.denoiser.network, tuple(inputs.values()))
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(actual["prediction"], expected, rtol=1e-5, atol=1e-5)
    video = jax.jit(lambda codec, latents: codec.decode(latents))(content.codec, latents)
    assert actual["video"].shape == (2, 5, 32, 32, 3)
    np.testing.assert_allclose(actual["video"].astype(int), video, atol=1)


def test_a_program_called_with_other_weights_than_the_network_has_is_refused(programs, content):
    codec = LatentCodec(content.codec.vae, mean=content.codec.mean[...], std=content.codec.std[...] * 2)
    with pytest.raises(ExportMismatch, match=r"decoder.stablehlo: differs .* at batch size 1: grey levels"):
        write_programs(dataclasses.replace(content, denoiser=None, codec=codec), programs)
