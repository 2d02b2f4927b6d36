# footsteps for NVIDIA GPUs: torch's Linux wheels bring CUDA's libraries, so the host needs its driver and container toolkit alone.
#   docker build -t footsteps .
#   docker run --rm --gpus all -v "$PWD":/work footsteps run experiment.toml
FROM python:3.12-slim

RUN useradd --create-home --uid 1000 footsteps && mkdir /work && chown footsteps /work
COPY pyproject.toml constraints.txt README.md LICENSE /source/
COPY cache_builder /source/cache_builder
COPY trainer /source/trainer
RUN python -m pip install --no-cache-dir --constraint /source/constraints.txt '/source[train,remote,quantised,tensorboard]' \
    && rm -r /source
USER 1000
WORKDIR /work
ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["footsteps"]
CMD ["--help"]
