"""Neo4j Community as its jars from Maven Central, started straight with ``java``: no launcher, no container, no rights.

The jars stay in the user's cache as Maven keeps them, and the class path beside them says that they are complete.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import neo4j
from neo4j.exceptions import ServiceUnavailable, SessionExpired, TransientError

from tests.servers import RunningServer, UnavailableError, cache_folder, free_port

if TYPE_CHECKING:
    from collections.abc import Generator

NAME: Final = "neo4j"
USER: Final = "neo4j"

_VERSION: Final = "5.26.30"
_POM: Final = f"""<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>local.dev</groupId><artifactId>neo4j-server-jars</artifactId><version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.neo4j</groupId><artifactId>neo4j</artifactId><version>{_VERSION}</version></dependency>
  </dependencies>
</project>
"""
# Tests empty the database all the time, which must not make the server plan every statement anew. Without the last
# three lines a stop takes 12 seconds.
_CONF: Final = """dbms.security.auth_enabled={auth}
server.bolt.enabled=true
server.bolt.listen_address=127.0.0.1:{port}
server.bolt.advertised_address=127.0.0.1:{port}
server.http.enabled=false
server.https.enabled=false
server.memory.pagecache.size=32m
db.tx_log.preallocate=false
db.tx_log.rotation.size=16m
db.tx_log.rotation.retention_policy=2 files
dbms.usage_report.enabled=false
dbms.cypher.min_replan_interval=1h
internal.dbms.bolt.netty_server_shutdown_quiet_period=0
internal.dbms.bolt.netty_server_shutdown_timeout=1s
internal.server.bolt.thread_pool_shutdown_wait_time=1s
"""
_OPEN_PACKAGES: Final = [f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in ("java.nio", "java.io", "sun.nio.ch")]
_JAVA: Final = [
    "-Xms64m",
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    *_OPEN_PACKAGES,
    "-Dio.netty.tryReflectionSetAccessible=true",
]
_START_SECONDS: Final = 90
_STOP_SECONDS: Final = 20


def install() -> str:
    """Get the jars with Maven unless they are there; return the version and where they are."""
    if missing := [program for program in ("java", "mvn") if shutil.which(program) is None]:
        raise UnavailableError(
            f"{' and '.join(missing)} not found; install a Java 17 runtime and Maven "
            "(Debian: apt-get install openjdk-17-jre-headless maven)"
        )
    folder = cache_folder(f"neo4j-{_VERSION}")
    with _alone(folder):
        if not _is_complete(folder):
            _get_jars(folder)
    return f"{_VERSION} in {folder}"


async def start(folder: Path, password: str | None = None, port: int | None = None) -> RunningServer:
    """Start a server whose data lie in ``folder`` and stay there; a second start goes on with them.

    Args:
        folder: of this server alone.
        password: of the user ``USER``; None: no log-in. Counts at the first start.
        port: None: a free one.
    """
    await asyncio.to_thread(install)
    class_path = (cache_folder(f"neo4j-{_VERSION}") / "classpath.txt").read_text().strip()
    port = port or free_port()
    is_first = not (folder / "conf").exists()
    (folder / "conf").mkdir(exist_ok=True)
    auth = "false" if password is None else "true"
    (folder / "conf" / "neo4j.conf").write_text(_CONF.format(port=port, auth=auth))
    if is_first and password is not None:
        await asyncio.to_thread(_set_password, folder, class_path, password)
    home = [f"--home-dir={folder}", f"--config-dir={folder / 'conf'}", "--console-mode"]
    command = ["java", *_JAVA, "-cp", class_path, "org.neo4j.server.CommunityEntryPoint", *home]
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)

    async def stop() -> None:
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, _STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)

    uri = f"bolt://127.0.0.1:{port}"
    try:
        version = await _answer(process, uri, None if password is None else (USER, password), folder / "server.log")
    except BaseException:
        await stop()
        raise
    return RunningServer(uri, version, process.pid, stop)


async def _answer(process: subprocess.Popen[bytes], uri: str, auth: tuple[str, str] | None, log: Path) -> str:
    """Return the server's version as soon as it answers a query."""
    end = time.monotonic() + _START_SECONDS
    async with neo4j.AsyncGraphDatabase.driver(uri, auth=auth, telemetry_disabled=True) as driver:
        while process.poll() is None and time.monotonic() < end:
            try:
                # Not execute_query, which would repeat it with long pauses.
                async with driver.session(database="neo4j") as session:
                    result = await session.run("RETURN 1")
                    return (await result.consume()).server.agent.removeprefix("Neo4j/")
            except (ServiceUnavailable, SessionExpired, TransientError):
                await asyncio.sleep(0.1)
    raise RuntimeError(f"Neo4j did not start (exit code {process.poll()}):\n{log.read_text()[-3000:]}")


def _set_password(folder: Path, class_path: str, password: str) -> None:
    program = ["org.neo4j.server.startup.Neo4jAdminCommand", "dbms", "set-initial-password", password]
    environment = {**os.environ, "NEO4J_HOME": str(folder), "NEO4J_CONF": str(folder / "conf")}
    subprocess.run(["java", "-cp", class_path, *program], check=True, capture_output=True, env=environment)


def _get_jars(folder: Path) -> None:
    (folder / "pom.xml").write_text(_POM)
    found = folder / "classpath.new"
    goal = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:build-classpath"
    options = [f"-Dmaven.repo.local={folder / 'repository'}", "-DincludeScope=runtime", f"-Dmdep.outputFile={found}"]
    done = subprocess.run(
        ["mvn", "-B", "-q", "-ntp", goal, *options], check=False, cwd=folder, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise UnavailableError(f"Maven could not get org.neo4j:neo4j:{_VERSION}: {(done.stdout + done.stderr)[-2000:]}")
    found.rename(folder / "classpath.txt")


def _is_complete(folder: Path) -> bool:
    class_path = folder / "classpath.txt"
    return class_path.exists() and all(Path(jar).exists() for jar in class_path.read_text().strip().split(os.pathsep))


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Keep other test runs of this user from installing at the same time."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
