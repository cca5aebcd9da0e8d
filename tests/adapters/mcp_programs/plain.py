"""An MCP server of the older protocol, written by hand: it shows what reaches the wire, and starts at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

NAMES = ["process", "listings", "grow", "freeze", "child", "environment", "big", "echo"]
listings = 0


def write(message: dict[str, object]) -> None:
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


def call(name: str, arguments: dict[str, object]) -> object:
    match name:
        case "process":
            return os.getpid()
        case "listings":
            return listings
        case "grow":
            NAMES.append("grown")
            write({"method": "notifications/tools/list_changed"})
            return len(NAMES)
        case "freeze":
            time.sleep(3600)
        case "child":
            return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"]).pid
        case "environment":
            return dict(os.environ)
        case "big":
            return "x" * 2_000_000
    return arguments


print("a banner that is no message", flush=True)
print(f"plain is open with {os.environ.get('KEY', 'no key')}", file=sys.stderr, flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    match asked.get("method"):
        case "initialize":
            capabilities = {"tools": {"listChanged": True}}
            info = {"name": "plain", "version": "1"}
            version = asked["params"]["protocolVersion"]
            answer = {"protocolVersion": version, "capabilities": capabilities, "serverInfo": info}
        case "tools/list":
            listings += 1
            half = len(NAMES) // 2
            is_rest = (asked.get("params") or {}).get("cursor") == "rest"
            names = NAMES[half:] if is_rest else NAMES[:half]
            answer = {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in names]}
            if not is_rest:
                answer["nextCursor"] = "rest"
        case "tools/call":
            found = call(asked["params"]["name"], asked["params"].get("arguments") or {})
            answer = {"content": [{"type": "text", "text": json.dumps(found)}]}
        case _:
            if "id" in asked:
                write({"id": asked["id"], "error": {"code": -32601, "message": "no such method"}})
            continue
    write({"id": asked["id"], "result": answer})
