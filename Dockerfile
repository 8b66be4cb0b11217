# A server of sparse autoencoders, for processors or, with EXTRAS=serve-gpu, for NVIDIA GPUs:
#   docker build -t sae-runtime .
#   docker run --rm -p 127.0.0.1:8080:8080 -v "$PWD/sae:/models/sae:ro" sae-runtime sae=/models/sae
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}
ARG EXTRAS=serve
COPY constraints.txt /wheels/
COPY --from=wheel /wheels /wheels
# The CUDA libraries of serve-gpu come from PyPI too; the host needs its driver and the NVIDIA container toolkit alone.
RUN pip install --no-cache-dir --constraint /wheels/constraints.txt "$(echo /wheels/*.whl)[${EXTRAS}]" \
    && rm -r /wheels \
    && useradd --uid 10001 --create-home sae
USER 10001
WORKDIR /models
ENV PYTHONUNBUFFERED=1
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/v2/health/ready')"]
# A container has a network of its own, so the server listens on all of it; publish the port where it may be reached.
ENTRYPOINT ["sae-runtime", "serve", "--host", "0.0.0.0", "--port", "8080"]
CMD ["--help"]
