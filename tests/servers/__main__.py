"""Gets every server that the tests can use: ``python -m tests.servers``."""

from __future__ import annotations

import sys

from tests.servers import UnavailableError, are_required, mongodb, neo4j, pinecone, redis

missing = 0
for module in (redis, pinecone, neo4j, mongodb):
    try:
        print(f"{module.NAME}: {module.install()}", flush=True)
    except UnavailableError as error:
        missing += 1
        print(f"{module.NAME}: not available: {error}", flush=True)
sys.exit(1 if missing and are_required() else 0)
