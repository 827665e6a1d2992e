"""Failing-store benchmark: every errno that a store may return while a checkpoint is read; none of them is damage.

A shim (tools/failing_store.c, which needs a C compiler) makes calls on one part of a step fail. *Stopped*: `resume`
ends with an OSError, after its minute of attempts. *Not asked*: it succeeds, for it does not make that call. *Damage*:
the step was taken for damaged or was moved, a fault of ours.
"""

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import jax

from dit_video.checkpoint.checkpoints import DAMAGED_FOLDER, Checkpoints, DamagedCheckpoint
from dit_video.checkpoint.folder import FOLDER
from dit_video.storage import failures
from tools.flip_bench import STEP, example_state

STOPPED, NOT_ASKED, DAMAGE = "stopped", "not asked", "damage"
HEADS = ("call", "path", "errnos", STOPPED, NOT_ASKED, DAMAGE)
PARTS = (
    "/",
    "/_CHECKPOINT_METADATA",
    "/params/_METADATA",
    "/params/manifest.ocdbt",
    "/params/array_metadatas",
    "/params/d",
    "/params/ocdbt.process_0",
)
CASES = [*((call, f"/{STEP}{part}") for call in ("open", "read") for part in PARTS), ("list", "")]
# TensorStore asks again without end at EAGAIN, and Python at EINTR.
ERRNOS = [
    *(errno.EPERM, errno.ENOENT, errno.EIO, errno.ENXIO, errno.ENOMEM, errno.EACCES, errno.EBUSY, errno.ENODEV),
    *(errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENFILE, errno.EMFILE, errno.EFBIG, errno.ENOSPC, errno.EROFS),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EPROTO, errno.EOVERFLOW, errno.ENETDOWN, errno.ENETUNREACH),
    *(errno.ECONNABORTED, errno.ECONNRESET, errno.ENOBUFS, errno.ENOTCONN, errno.ESHUTDOWN, errno.ETIMEDOUT),
    *(errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EALREADY, errno.ESTALE, errno.EDQUOT),
    *(errno.EREMOTEIO, errno.ENOKEY, errno.EKEYEXPIRED, errno.EBADMSG, errno.ENOLCK, errno.ENOTSUP),
]


def measure() -> list[list[object]]:
    """Rows of the table, from a process that runs with the shim."""
    with tempfile.TemporaryDirectory() as folder:
        shim = Path(folder) / "failing_store.so"
        source = Path(__file__).parent / "failing_store.c"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, source, "-ldl"], check=True)
        command = [sys.executable, "-m", "tools.errno_bench", str(Path(folder) / "run")]
        environment = os.environ | {"LD_PRELOAD": str(shim)}
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout)


def _measure_here(run: Path) -> list[list[object]]:
    failures.READ_PAUSES = ()  # what fails here fails for ever
    state = example_state()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    rows: list[list[object]] = []
    with Checkpoints(run, experiment={}) as checkpoints:
        for step in (1, STEP):
            checkpoints.save(step, state, next_batch=step)
            checkpoints.wait()
        for call, part in CASES:
            endings = Counter(_ending(checkpoints, shapes, call, part, number) for number in ERRNOS)
            rows.append([call, f"{FOLDER}{part}", len(ERRNOS), *(endings[ending] for ending in HEADS[3:])])
        assert not (run / DAMAGED_FOLDER).exists(), "a step was set aside"
    return rows


def _ending(checkpoints: Checkpoints, shapes: Any, call: str, part: str, number: int) -> str:
    os.environ.update(FAIL_CALL=call, FAIL_ERRNO=str(number), FAIL_PATH=f"{FOLDER}{part}")
    try:
        saved = checkpoints.resume(shapes, lambda message: None)
    except DamagedCheckpoint:
        return DAMAGE
    except OSError:
        return STOPPED
    finally:
        os.environ["FAIL_PATH"] = ""
    return NOT_ASKED if saved is not None and saved.step == STEP else DAMAGE


if __name__ == "__main__":
    print(json.dumps(_measure_here(Path(sys.argv[1]))))
