# syntax=docker/dockerfile:1
# Two targets: `server` is light (no torch), `worker` carries torch.  Both run as an unprivileged user.

FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 WATTLE_DATA_DIR=/data
WORKDIR /app
RUN useradd --create-home --uid 10001 wattle && install -d -o wattle /data
COPY pyproject.toml README.md ./
COPY costs ./costs
COPY growth ./growth
COPY profiler ./profiler
COPY store ./store
COPY server ./server
COPY worker ./worker
COPY wattle ./wattle
COPY migrations ./migrations

FROM base AS server
RUN pip install ".[postgres]"
USER wattle
VOLUME /data
EXPOSE 8765
CMD ["python", "-m", "server"]

FROM base AS worker
RUN pip install ".[worker,postgres]"
USER wattle
VOLUME /data
CMD ["python", "-m", "worker", "--device", "this-host"]
