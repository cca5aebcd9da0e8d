"""Programs that are no MCP servers, each in its own way; without a package, so that they start at once."""

from __future__ import annotations

import os
import signal
import sys
import time

match sys.argv[1]:
    case "exits":
        print("the database is missing", file=sys.stderr)
        print(f"my key is {os.environ.get('KEY', '')}", file=sys.stderr)
        sys.exit(3)
    case "hangs":
        print("waiting for something", file=sys.stderr, flush=True)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1)
    case "garbage":
        while True:
            print("Welcome to the program! This is no JSON.", flush=True)
            time.sleep(0.05)
    case "flood":
        while True:
            sys.stdout.write("x" * 65_536)
