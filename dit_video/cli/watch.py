"""`dit-video watch`: the page of `report` on 127.0.0.1, kept current."""

import argparse

import jax

from dit_video.config.extras import require
from dit_video.config.user_file import ExperimentError
from dit_video.progress import Terminal
from dit_video.report.recorded_run import read_runs
from dit_video.storage.bucket import address


def main(arguments: argparse.Namespace) -> int:
    for folder in arguments.workdirs:
        if address(folder) is not None:
            raise ExperimentError(f"{folder}: is in a bucket; `dit-video report` copies what it has and draws that")
    require(("starlette", "uvicorn"), "web", "watch")
    read_runs(arguments.workdirs)
    jax.config.update("jax_platforms", "cpu")
    from dit_video.report.live import application
    from dit_video.web.server import Server

    server = Server(application(arguments.workdirs, title=arguments.title), port=arguments.port)
    Terminal().print(f"{server.address}\nkept current until Ctrl-C; whoever has this address may look")
    server.run()
    return 0
