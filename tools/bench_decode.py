"""Decoding speed of this checkout against another, on plain videos: windows as training cuts them, and whole files.

    python -m tools.bench_decode OTHER_CHECKOUT

Both sides decode the same files in turn, each in processes of its own. What is printed is the ratio of the least CPU
times of each, above 1 where this checkout is slower: other programs only add to a time, so that the least says most.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
_TURNS = 5
# Runs with the package of the checkout in its working folder; prints seconds by name.
_SIDE = """
import json, sys, time
sys.path.insert(0, ".")
from dit_video.video.decode import decode_window
from dit_video.ingest.probe import storable
from pathlib import Path

def seconds(call, times):
    call()
    taken = []
    for _ in range(times):
        began = time.process_time()
        call()
        taken.append(time.process_time() - began)
    return min(taken)

found = {}
for path in sys.argv[1:]:
    data = Path(path).read_bytes()
    name = Path(path).stem
    found[f"{name} window"] = seconds(lambda: decode_window(data, start=40, num_frames=17, cover=(64, 64)), 25)
    found[f"{name} ingest"] = seconds(lambda: storable(Path(path), Path(path + ".mp4"), None), 4)
print(json.dumps(found))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, metavar="OTHER_CHECKOUT")
    other = parser.parse_args().other
    if not (other / "dit_video" / "video" / "decode.py").is_file():
        parser.error(f"{other}: is no checkout of dit_video; `git worktree add {other} REV` makes one")
    with tempfile.TemporaryDirectory() as folder:
        paths = _videos(Path(folder))
        least: dict[str, dict[Path, float]] = {}
        for turn in range(_TURNS):
            for side in (ROOT, other) if turn % 2 else (other, ROOT):
                for name, seconds in _measured(side, paths).items():
                    of_side = least.setdefault(name, {})
                    of_side[side] = min(seconds, of_side.get(side, seconds))
    for name, of_side in least.items():
        print(f"{name}: {of_side[ROOT] / of_side[other]:.3f} ({1000 * of_side[ROOT]:.2f} ms)")


def _measured(side: Path, paths: list[str]) -> dict[str, float]:
    result = subprocess.run(
        [sys.executable, "-c", _SIDE, *paths], cwd=side, capture_output=True, text=True, check=True, env={}
    )
    return json.loads(result.stdout)


def _videos(folder: Path) -> list[str]:
    import numpy as np

    from dit_video.video.encode import write_mp4

    paths = []
    for height, width in ((64, 64), (240, 320), (720, 1280)):
        t, y, x = np.mgrid[:96, :height, :width].astype(np.float32)
        video = np.stack([128 + 90 * np.sin((x * (c + 1) + 5 * t) / 40 + y / 30) for c in range(3)], axis=-1)
        paths.append(str(folder / f"{height}p.mp4"))
        write_mp4(paths[-1], video.astype(np.uint8), 25)
    return paths


if __name__ == "__main__":
    main()
