# The package and its command line in an image.
# docker build --tag neural-alignment .                       (CPU)
# docker build --build-arg EXTRA=gpu --tag neural-alignment . (NVIDIA GPUs; run it with `docker run --gpus all`)
# docker run --rm --volume "$PWD:/work" neural-alignment train quickstart
FROM python:3.12-slim AS wheel
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel /source && cp /source/constraints.txt /wheel

# The image has only the wheel, and not the results and tests of the repository.
FROM python:3.12-slim
ARG EXTRA=cpu
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir --constraint /wheel/constraints.txt "$(echo /wheel/*.whl)[$EXTRA]" && rm -r /wheel
WORKDIR /work
ENTRYPOINT ["neural-alignment"]
CMD ["--help"]
