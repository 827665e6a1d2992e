# The image that the manifests of `dit-video launch gke --image=IMAGE` run in:
#     docker build --build-arg EXTRAS=tpu,gcs -t IMAGE .       (GPUs: EXTRAS=cuda,gcs)
# tests/launch/test_image.py executes its RUN lines in a new virtual environment.
FROM python:3.11-slim
# Of pyproject.toml: the devices, and gcs where runs are kept in buckets.
ARG EXTRAS=gcs
WORKDIR /source
COPY pyproject.toml setup.py constraints.txt README.md LICENSE ./
COPY dit_video dit_video
COPY experiments experiments
RUN python -m pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]"
# Your own experiment files go here; those of the package are found in any folder.
WORKDIR /run
RUN dit-video experiments
# What is printed is in the log of the pod at once.
ENV PYTHONUNBUFFERED=1
