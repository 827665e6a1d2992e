"""Compiled programs are kept for the next start, where the user wants them."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import jax
from dit_video.run.compilation_cache import keep_compiled_programs
keep_compiled_programs()
jax.jit(lambda x: x @ x)(jax.numpy.ones((8, 8))).block_until_ready()
print(jax.config.jax_compilation_cache_dir)
"""


def start(home: Path, **environment: str) -> Path:
    variables = os.environ | {"XDG_CACHE_HOME": str(home), "JAX_ENABLE_COMPILATION_CACHE": "true"}
    variables |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **environment}
    run = subprocess.run([sys.executable, "-c", PROGRAM], env=variables, capture_output=True, text=True, check=True)
    return Path(run.stdout.strip())


def test_a_second_start_finds_what_the_first_compiled(tmp_path):
    folder = start(tmp_path)
    assert folder.parent == tmp_path / "dit_video" / "compiled"
    kept = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert kept
    start(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == kept


def test_a_folder_that_the_user_names_is_his(tmp_path):
    mine = tmp_path / "mine"
    assert start(tmp_path, JAX_COMPILATION_CACHE_DIR=str(mine)) == mine
    assert not (tmp_path / "dit_video").exists()
