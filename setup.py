"""Where the packages lie: experiments/ is installed as dit_video/experiments; all else is said in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["dit_video*"]), "dit_video.experiments"],
    package_dir={"dit_video.experiments": "experiments"},
)
