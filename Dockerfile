# syntax=docker/dockerfile:1
# The service in a container: `docker build --target cpu -t alphalloc:cpu .`, or `--target cuda`.
# Pin the base by digest where images are rebuilt: --build-arg PYTHON_IMAGE=python:3.12-slim@sha256:...
ARG PYTHON_IMAGE=python:3.12-slim

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
RUN python -m venv /opt/alphalloc
COPY constraints.txt ./
# What changes rarely comes first: the libraries, then the project.
COPY pyproject.toml README.md LICENSE ./
COPY alphalloc ./alphalloc
COPY service ./service

FROM build AS build-cpu
# Without torch: .bin checkpoints are refused by name and large matrices take about twice as long. A build of torch for
# the CPU alone is a third of the default one; name its index to have it: --build-arg TORCH_INDEX_URL=...
ARG TORCH_INDEX_URL=""
RUN if [ -n "${TORCH_INDEX_URL}" ]; then \
        /opt/alphalloc/bin/pip install --constraint constraints.txt --index-url "${TORCH_INDEX_URL}" torch; \
    fi \
    && /opt/alphalloc/bin/pip install --constraint constraints.txt ".[server,postgres,gguf,otel]"

FROM build AS build-cuda
RUN /opt/alphalloc/bin/pip install --constraint constraints.txt ".[server,postgres,gguf,otel,torch,ray]"

FROM ${PYTHON_IMAGE} AS runtime
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="alphalloc" \
      org.opencontainers.image.description="Expert schedules from the power-law exponents of a pretrained model's layers" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN groupadd --gid 10001 alphalloc \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin alphalloc \
    && install --directory --owner 10001 --group 10001 --mode 0700 /data
# Everything that is written lies in /data (database, spectra, the hub's cache) or /tmp; the rest may be read-only.
ENV PATH=/opt/alphalloc/bin:$PATH \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/data XDG_DATA_HOME=/data XDG_CACHE_HOME=/data/cache HF_HOME=/data/huggingface \
    OMP_NUM_THREADS=1 \
    ALPHALLOC_HOST=0.0.0.0 ALPHALLOC_PORT=8000 ALPHALLOC_LOG_FORMAT=json
WORKDIR /data
USER 10001:10001
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
# A listener that others reach wants a key: `docker run --rm -v alphalloc:/data alphalloc:cpu keys create NAME` first.
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['ALPHALLOC_PORT'] + '/healthz', timeout=4)"]
ENTRYPOINT ["alphalloc"]
CMD ["serve"]

FROM runtime AS cuda
COPY --from=build-cuda /opt/alphalloc /opt/alphalloc

# The last one is what `docker build` without --target makes.
FROM runtime AS cpu
COPY --from=build-cpu /opt/alphalloc /opt/alphalloc
