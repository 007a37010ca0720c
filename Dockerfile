# syntax=docker/dockerfile:1
# mrt in a container, with its kernels, for a user without rights:
#
#   docker build --target cpu -t mrt .
#   docker build --target cuda -t mrt:cuda .
#   docker run --rm -it --user "$(id -u):$(id -g)" -v "$PWD:/mrt" mrt prepare-data synthetic
#   docker run --rm -it --gpus all --shm-size 8g --user "$(id -u):$(id -g)" -v "$PWD:/mrt" mrt:cuda adapt --target foggy
#
# Data, runs and what is remembered or downloaded lie in the folder that is mounted at /mrt.

# TORCH is what pip installs, TORCH_INDEX where from if not from pip's own index: PyTorch's "Get started" page
# names an index whose CPU wheels are gigabytes smaller. CUDA has to be of the release that torch was built with:
# if it is another, the build says so and attention takes PyTorch's path.
ARG PYTHON=3.12
ARG CUDA=13.0.1

# hadolint ignore=DL3006
FROM python:${PYTHON}-slim-bookworm AS cpu-build
ARG TORCH="torch>=2.11 torchvision>=0.26"
ARG TORCH_INDEX=""
ARG EXTRAS="demo,report,video,hub"
ENV MRT_BUILD=cpu PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/mrt
ENV PATH="/opt/mrt/bin:$PATH"
# hadolint ignore=DL3013,SC2086
RUN pip install "setuptools>=77" wheel ninja \
    && pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} $TORCH
COPY . /src
WORKDIR /src
# hadolint ignore=DL3013
RUN pip install --no-build-isolation ".[$EXTRAS]"

# hadolint ignore=DL3006
FROM python:${PYTHON}-slim-bookworm AS cpu
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 mrt \
    && install -d -o mrt -g mrt /mrt
COPY --from=cpu-build /opt/mrt /opt/mrt
ENV PATH="/opt/mrt/bin:$PATH" HOME=/mrt/.mrt-home
USER 10001
WORKDIR /mrt
ENTRYPOINT ["mrt"]
CMD ["--help"]

FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04 AS cuda-build
ARG TORCH="torch>=2.11 torchvision>=0.26"
ARG TORCH_INDEX=""
ARG EXTRAS="demo,report,video,hub"
# Of A100, RTX 30, RTX 40, H100 and B200; a smaller list builds faster.
ARG ARCHITECTURES="8.0;8.6;8.9;9.0;10.0+PTX"
ENV MRT_BUILD=cuda TORCH_CUDA_ARCH_LIST=${ARCHITECTURES} PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/mrt
ENV PATH="/opt/mrt/bin:$PATH"
# hadolint ignore=DL3013,SC2086
RUN pip install "setuptools>=77" wheel ninja \
    && pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} $TORCH
COPY . /src
WORKDIR /src
# hadolint ignore=DL3013
RUN pip install --no-build-isolation ".[$EXTRAS]"

# torch brings CUDA's libraries along; the driver comes from the host (--gpus).
FROM ubuntu:24.04 AS cuda
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 mrt \
    && install -d -o mrt -g mrt /mrt
COPY --from=cuda-build /opt/mrt /opt/mrt
ENV PATH="/opt/mrt/bin:$PATH" HOME=/mrt/.mrt-home \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
WORKDIR /mrt
ENTRYPOINT ["mrt"]
CMD ["--help"]
