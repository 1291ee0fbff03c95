# The package and its command line in an image.
# docker build --tag neural-alignment .                       (CPU)
# docker build --build-arg EXTRA=gpu --tag neural-alignment . (NVIDIA GPUs; run it with `docker run --gpus all`)
# docker run --rm --volume "$PWD:/work" neural-alignment train quickstart
FROM python:3.12-slim
ARG EXTRA=cpu
COPY . /source
RUN pip install --no-cache-dir --constraint /source/constraints.txt "/source[$EXTRA]" && rm -r /source
WORKDIR /work
ENTRYPOINT ["neural-alignment"]
CMD ["--help"]
