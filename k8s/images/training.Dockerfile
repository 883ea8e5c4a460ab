# The image of every step and of the orchestrator: locked packages in one layer, the code in another.
#
#   docker build --file k8s/images/training.Dockerfile --tag REGISTRY/ted-training:TAG .
#
# Torch's own wheel decides whether the image computes on GPUs: the one on PyPI does, that of download.pytorch.org/whl/cpu
# does not and is a tenth of the size. Point pip to the one that you want, for instance with
# --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS packages
ARG PIP_EXTRA_INDEX_URL=
COPY k8s/images/training.lock /tmp/training.lock
RUN python3 -m venv /opt/ted \
    && /opt/ted/bin/pip install --no-cache-dir --no-compile --requirement /tmp/training.lock \
    && /opt/ted/bin/pip uninstall --yes pip

FROM ${PYTHON_IMAGE}
ARG COMMIT=
LABEL org.opencontainers.image.title="TED training" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/ted/bin:${PATH} \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ZENML_ANALYTICS_OPT_IN=false
COPY --from=packages /opt/ted /opt/ted
COPY . /app
WORKDIR /app
# A number, so that a cluster can tell that it is not root.
USER 10001:10001
