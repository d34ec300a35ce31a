# docker build -t centrobind . && docker run --rm -p 8000:8000 centrobind
# The demo at build time, its space in a browser at run time. CPU only: with a GPU, start from an image with CUDA.
FROM python:3.12-slim
WORKDIR /app
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
RUN pip install --no-cache-dir --constraint constraints.txt '.[serve]' \
    && useradd --create-home centrobind && mkdir runs && chown centrobind runs
USER centrobind
RUN centrobind demo --out runs/demo
EXPOSE 8000
# A token is made and printed at the start, because the page listens beyond this machine.
CMD ["centrobind", "serve", "runs/demo", "glyphs", "--host", "0.0.0.0", "--port", "8000"]
