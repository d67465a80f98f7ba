# The tool, its Locust plugin and the embedded server in one image. `docker build -t loadtest/loadtest:0.1.0 .`
FROM python:3.12.12-slim-bookworm AS wheels
WORKDIR /src
COPY pyproject.toml README.md ./
COPY loadtest ./loadtest
RUN pip wheel --no-cache-dir --wheel-dir /wheels .

FROM python:3.12.12-slim-bookworm
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --find-links /wheels /wheels/loadtest-*.whl
# The embedded server's base, made once; /adapters and /results so that volumes mounted there inherit the owner.
RUN useradd --uid 10001 --create-home loadtest \
 && python -c 'from pathlib import Path; from loadtest.server.base import ensure_base; ensure_base(Path("/srv/cache")).rename("/srv/base")' \
 && install -d -o loadtest -g loadtest /adapters /results
COPY locustfile.py /srv/locustfile.py

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    LOADTEST_CACHE=/tmp/loadtest
USER 10001:10001
WORKDIR /results
ENTRYPOINT ["loadtest"]
CMD ["--help"]
