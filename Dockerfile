# Baton's worker and command line: the packages that requirements-llm.lock names, by their hashes, and the checkout.
FROM python:3.11.14-slim-bookworm AS packages
COPY requirements-llm.lock /
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --only-binary=:all: --require-hashes --requirement /requirements-llm.lock

FROM python:3.11.14-slim-bookworm
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/opt/baton PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
COPY --from=packages /opt/venv /opt/venv
COPY pyproject.toml worker.py /opt/baton/
COPY activities /opt/baton/activities
COPY engine /opt/baton/engine
COPY workflows /opt/baton/workflows
RUN useradd --system --uid 10001 baton && install --directory --owner baton /var/lib/baton /agents
USER baton
# Python agents are looked for here.
WORKDIR /agents
CMD ["python", "/opt/baton/worker.py"]
