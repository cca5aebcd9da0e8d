"""`./baton` installs once, says in one line what it can't do, and hands everything over unchanged."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
TOOLS = ("sh", "cksum", "dirname", "mkdir", "mv", "readlink", "rm", "sed")

CLI = """
import os, sys
print([sys.argv[1:], os.getcwd(), sys.prefix])
sys.exit(7)
"""


@dataclass
class Machine:
    """A checkout without an environment, and a PATH that holds only what a test puts there."""

    checkout: Path
    path: Path
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> Path:
        return self.checkout / ".venv"

    def start(self, *arguments: str, wrapper: Path | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [wrapper or self.checkout / "baton", *arguments],
            cwd=self.path,
            env={
                "PATH": str(self.path),
                "HOME": os.environ["HOME"],
                "UV_OFFLINE": "1",
                "UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple",
                "SSL_CERT_FILE": "/dev/null",
                **self.variables,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, wrapper: Path | None = None) -> tuple[int, str, str]:
        started = self.start(*arguments, wrapper=wrapper)
        output, errors = started.communicate(timeout=60)
        return started.returncode, output, errors

    def install(self, name: str, program: str) -> None:
        (self.path / name).write_text(f"#!/bin/sh\n{program}\n")
        (self.path / name).chmod(0o755)

    def install_python(self) -> None:
        self.install("python3", f"exec '{Path(sys.executable).resolve()}' \"$@\"")

    def install_uv(self) -> None:
        uv = shutil.which("uv") or shutil.which("uv", path=str(CHECKOUT / ".uv" / "bin"))
        assert uv, "./baton test gets uv before it runs this"
        # Each use leaves a line, so that a test sees what was not done again.
        self.install("uv", f"echo \"$1\" >>'{self.path}/uv-uses'\nexec '{uv}' \"$@\"")

    def uv_uses(self) -> list[str]:
        return (self.path / "uv-uses").read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    checkout = tmp_path / "a checkout"
    (checkout / "engine" / "cli").mkdir(parents=True)
    shutil.copy(CHECKOUT / "baton", checkout / "baton")
    (checkout / "requirements.lock").write_text("# nothing\n")
    (checkout / "requirements-llm.lock").write_text("# nothing for model agents\n")
    (checkout / "requirements-dev.lock").write_text("# nothing for developers\n")
    (checkout / "engine" / "__init__.py").write_text("")
    (checkout / "engine" / "cli" / "__init__.py").write_text("")
    (checkout / "engine" / "cli" / "__main__.py").write_text(CLI)
    path = tmp_path / "bin"
    path.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found
        (path / tool).symlink_to(found)
    return Machine(checkout, path)


@pytest.fixture
def ready_machine(machine: Machine) -> Machine:
    machine.install_python()
    machine.install_uv()
    return machine


@pytest.mark.parametrize("found", [(), ("python3",), ("python3", "python3.12", "python3.11")])
def test_without_a_new_enough_python_one_line_says_what_to_install(machine: Machine, found: tuple[str, ...]):
    for name in found:
        # As a Python 3.9 answers: it prints nothing.
        machine.install(name, "exit 0")
    code, output, errors = machine.run("demo")
    assert (code, output) == (3, "")
    assert len(errors.splitlines()) == 1
    assert "Python 3.11 or later" in errors
    assert not machine.environment.exists()


def test_an_old_python3_is_passed_over_for_a_newer_one_beside_it(ready_machine: Machine):
    (ready_machine.path / "python3").rename(ready_machine.path / "python3.12")
    ready_machine.install("python3", "exit 0")
    code, _output, errors = ready_machine.run("demo")
    assert (code, errors) == (7, "Installing the locked environment (once) ...\n")


def test_without_uv_and_pip_one_line_says_what_to_install(machine: Machine):
    real = Path(sys.executable).resolve()
    # What the wrapper asks for is the interpreter behind the name, here one without pip.
    without_pip = machine.path / "python-without-pip"
    machine.install("python3", f"[ \"$1\" = -c ] && echo '{without_pip}' && exit 0\nexec '{real}' \"$@\"")
    machine.install(without_pip.name, f'[ "$1" = -m ] && exit 1\nexec \'{real}\' "$@"')
    code, output, errors = machine.run("demo")
    assert (code, output) == (3, "")
    assert len(errors.splitlines()) == 1
    assert "neither uv nor pip" in errors


def test_arguments_directory_and_exit_code_pass_through_also_by_a_symlink(ready_machine: Machine):
    link = ready_machine.path / "link"
    link.symlink_to(Path("..") / "a checkout" / "baton")
    code, output, errors = ready_machine.run("a", "b c", "", wrapper=link)
    expected = [["a", "b c", ""], str(ready_machine.path), str(ready_machine.environment)]
    assert (code, output) == (7, f"{expected}\n")
    assert errors == "Installing the locked environment (once) ...\n"


def test_a_second_start_is_silent_and_needs_neither_python_nor_uv(ready_machine: Machine):
    ready_machine.run("demo")
    (ready_machine.path / "python3").unlink()
    (ready_machine.path / "uv").unlink()
    code, output, errors = ready_machine.run("demo")
    assert (code, errors) == (7, "")
    assert "demo" in output


def test_a_folder_named_engine_where_the_user_is_does_not_stand_in_for_ours(ready_machine: Machine):
    (ready_machine.path / "engine").mkdir()
    (ready_machine.path / "engine" / "__init__.py").write_text("raise SystemExit('the wrong engine')")
    code, _output, errors = ready_machine.run("demo")
    assert code == 7, errors


def test_another_lock_is_installed_again_into_the_same_environment(ready_machine: Machine):
    ready_machine.run("demo")
    (ready_machine.checkout / "requirements.lock").write_text("# something else\n")
    code, _output, errors = ready_machine.run("demo")
    assert (code, errors) == (7, "Installing the locked environment (once) ...\n")
    assert ready_machine.uv_uses() == ["venv", "pip", "pip"]
    assert ready_machine.run("demo")[2] == ""


def test_uv_reaches_the_index_that_pip_is_set_up_for(ready_machine: Machine):
    settings = ready_machine.path / "pip.conf"
    settings.write_text("[global]\nindex-url = http://127.0.0.1:9/from-a-file\ncert = /some/where.pem\n")
    ready_machine.variables = {
        "UV_DEFAULT_INDEX": "",
        "SSL_CERT_FILE": "",
        "PIP_CONFIG_FILE": str(settings),
        "PIP_INDEX_URL": "",
    }
    seen = ready_machine.path / "seen"
    ready_machine.install("uv", f"echo \"$UV_DEFAULT_INDEX $SSL_CERT_FILE\" >'{seen}'\nexit 1")
    ready_machine.run("demo")
    assert seen.read_text() == "http://127.0.0.1:9/from-a-file /some/where.pem\n"
    ready_machine.variables["UV_DEFAULT_INDEX"] = "http://127.0.0.1:9/from-uv"
    ready_machine.variables["PIP_CERT"] = "/else/where.pem"
    ready_machine.run("demo")
    assert seen.read_text() == "http://127.0.0.1:9/from-uv /else/where.pem\n"


def test_two_first_starts_at_once_install_once(ready_machine: Machine):
    started = [ready_machine.start("demo") for _ in range(2)]
    ended = [(one.communicate(timeout=60), one.returncode) for one in started]
    assert [code for _texts, code in ended] == [7, 7], ended
    assert ready_machine.uv_uses() == ["venv", "pip"]


def test_a_failed_installation_is_told_and_the_next_start_recovers(ready_machine: Machine):
    lock = ready_machine.checkout / "requirements.lock"
    lock.write_text("no-such-package==1.0 --hash=sha256:" + "0" * 64 + "\n")
    code, output, errors = ready_machine.run("demo")
    assert (code, output) == (3, "")
    assert "could not install requirements.lock" in errors.splitlines()[-1]
    lock.write_text("# nothing\n")
    assert ready_machine.run("demo")[0] == 7


def test_an_environment_that_was_left_half_made_is_made_anew(ready_machine: Machine):
    (ready_machine.environment / "bin").mkdir(parents=True)
    (ready_machine.environment / "bin" / "python").symlink_to("/nowhere/python")
    assert ready_machine.run("demo")[0] == 7


def test_an_environment_of_a_moved_checkout_is_made_anew(ready_machine: Machine):
    ready_machine.run("demo")
    moved = ready_machine.checkout.rename(ready_machine.checkout.with_name("moved"))
    code, output, _errors = ready_machine.run("demo", wrapper=moved / "baton")
    assert code == 7
    assert str(moved / ".venv") in output
    assert ready_machine.uv_uses() == ["venv", "pip", "venv", "pip"]


def test_what_model_agents_need_is_installed_once_and_stays(ready_machine: Machine):
    code, output, errors = ready_machine.run("install", "llm")
    assert (code, output) == (0, "")
    assert errors.splitlines()[-1] == "Model agents can be called: what they need is in .venv, and stays there."
    assert ready_machine.run("demo")[2] == ""
    assert ready_machine.run("install", "llm")[0] == 0
    assert ready_machine.uv_uses() == ["venv", "pip"]
    (ready_machine.checkout / "requirements.lock").write_text("# something else\n")
    assert ready_machine.run("demo")[0] == 7
    (ready_machine.checkout / "requirements-llm.lock").unlink()
    code, _output, errors = ready_machine.run("install", "llm")
    assert code == 3
    assert "requirements-llm.lock" in errors


@pytest.mark.parametrize("words", [(), ("numpy",), ("llm", "dev")])
def test_there_is_one_thing_to_install_besides(ready_machine: Machine, words: tuple[str, ...]):
    assert ready_machine.run("install", *words) == (
        3,
        "",
        "baton: there is one thing to install besides: ./baton install llm\n",
    )


def test_an_environment_for_developers_serves_users_and_stays_one(ready_machine: Machine):
    checkout = ready_machine.checkout
    for package in ("engine/adapters", "engine/adapters/temporal", "pytest"):
        (checkout / package).mkdir()
        (checkout / package / "__init__.py").write_text("")
    (checkout / "engine/adapters/temporal/dev_server.py").write_text("print('a server is there')")
    (checkout / "pytest" / "__main__.py").write_text(CLI)
    (checkout / "tests" / "servers").mkdir(parents=True)
    (checkout / "tests" / "servers" / "__main__.py").write_text("print('the servers are there')")
    code, output, errors = ready_machine.run("test", "-k", "a b")
    assert (code, errors) == (7, "Installing the locked environment (once) ...\n")
    expected = [["-k", "a b"], str(checkout), str(ready_machine.environment)]
    assert output == f"a server is there\n{expected}\n"
    assert ready_machine.run("demo")[2] == ""
    (checkout / "requirements.lock").write_text("# something else\n")
    assert ready_machine.run("demo")[0] == 7
    assert ready_machine.run("test")[2] == ""


def test_tests_do_not_start_without_a_temporal_server(ready_machine: Machine):
    checkout = ready_machine.checkout
    for package in ("engine/adapters", "engine/adapters/temporal", "pytest"):
        (checkout / package).mkdir()
        (checkout / package / "__init__.py").write_text("")
    (checkout / "engine/adapters/temporal/dev_server.py").write_text("raise SystemExit(3)")
    (checkout / "pytest" / "__main__.py").write_text(CLI)
    code, output, _errors = ready_machine.run("test")
    assert (code, output) == (3, "")
