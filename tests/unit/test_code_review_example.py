"""The example is run as its definition says: mappings out of the file, agents by their registered names."""

from __future__ import annotations

import ast
import importlib
import os
import re
import tempfile
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import pytest
import yaml

import examples.code_review
from engine.domain.definition import WorkflowDefinition
from engine.domain.expressions import RootsScope, compile_template
from engine.domain.validation import parse_definition
from examples.code_review.agents import architecture, detail, relationship, report
from examples.code_review.drawing import MAX_NODES, draw
from examples.code_review.import_graph import Edge, layers, shortest_cycle, strong_components
from examples.code_review.measures import complexity, measure_module, public_names
from examples.code_review.summary import figures, summary_agents, with_summary

DEFINITION = yaml.safe_load(Path(examples.code_review.__file__).with_name("workflow.yaml").read_text(encoding="utf-8"))


@dataclass
class RecordingCall:
    """An `AgentCall` that keeps what is emitted and is cancelled after so many looks."""

    execution_id: str = "code-review-1"
    step_id: str = "step"
    attempt: int = 1
    idempotency_key: str = "code-review-1/run/step/1"
    deadline: datetime = datetime(2030, 1, 1, tzinfo=UTC)
    context: list = field(default_factory=list)
    looks_until_cancelled: int = 10**9
    emitted: list[str] = field(default_factory=list)

    @property
    def cancelled(self):
        self.looks_until_cancelled -= 1
        return self.looks_until_cancelled < 0

    def heartbeat(self, progress=None):
        pass

    def emit(self, text):
        self.emitted.append(text)


@pytest.fixture
def tree(tmp_path):
    def build(files):
        root = tmp_path / "tree"
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return root

    return build


def resolve(mapping, values):
    return compile_template(mapping).resolve(RootsScope(values))


def run_definition(input_data):
    jsonschema.validate(input_data, DEFINITION["input_schema"])
    functions = {agent["agent_id"]: agent["config"]["function"] for agent in examples.code_review.AGENTS}
    values = {"input": input_data, "steps": {}}
    for step in DEFINITION["steps"]:
        assert set(step.get("depends_on", [])) <= set(values["steps"])
        module, _, name = functions[step["agent_id"]].partition(":")
        function = getattr(importlib.import_module(module), name)
        assert function.__module__ == module
        output = function(resolve(step["input_mapping"], values), RecordingCall())
        values["steps"][step["id"]] = {"output": resolve(step["output_mapping"], {"output": output})}
    return resolve(DEFINITION["output_mapping"], values), values["steps"]


def review(root):
    return run_definition({"path": str(root), "report_path": str(root.parent / "out" / "review.md")})


def relate(root):
    found = architecture({"path": str(root)}, RecordingCall())
    return relationship({"root": found["root"], "modules": found["modules"]}, RecordingCall())


LAYERED = {
    "shop/__init__.py": '"""A shop."""\nfrom shop.cart import Cart\n',
    "shop/cart.py": '"""Carts."""\nfrom . import prices\nimport requests\nclass Cart:\n    def add(self): ...\n',
    "shop/prices.py": "def price(a, b):\n    return a if a and b else b\n",
    "tests/test_cart.py": "from shop import Cart\ndef test_it():\n    assert Cart()\n",
}


def test_the_definition_reviews_a_tree_and_writes_the_report(tree):
    output, steps = review(tree(LAYERED))
    text = Path(output["report_path"]).read_text(encoding="utf-8")
    assert output["modules"] == 4
    assert output["unreadable"] == []
    assert output["summary"].startswith("4 modules (1 test) in 2 packages, 12 lines. 2 functions measured")
    assert text.startswith("# Code review of tree\n")
    assert all(words in re.sub(r"\s+", " ", text) for words in output["findings"])
    assert "```mermaid\ngraph TD\n" in text
    assert [row["module"] for row in steps["detail"]["output"]["modules"]] == [
        "shop",
        "shop.cart",
        "shop.prices",
    ]


def test_the_definition_is_one_that_the_engine_takes():
    assert [step.id for step in WorkflowDefinition.model_validate(DEFINITION).steps] == [
        "architecture",
        "detail",
        "relationship",
        "report",
    ]


def test_every_agent_of_the_definition_is_registered_once():
    ids = [agent["agent_id"] for agent in examples.code_review.AGENTS]
    assert sorted(step["agent_id"] for step in DEFINITION["steps"]) == sorted(ids)


def test_the_definition_says_all_that_the_agents_return(tree):
    root = tree(LAYERED)
    _, steps = review(root)
    found = architecture({"path": str(root)}, RecordingCall())
    handed = {"root": found["root"], "modules": found["modules"]}
    assert steps["architecture"]["output"] == found
    assert steps["detail"]["output"] == detail(handed, RecordingCall())
    assert steps["relationship"]["output"] == relationship(handed, RecordingCall())


def test_files_that_cannot_be_read_are_named_and_do_not_stop_the_review(tree):
    root = tree(
        {
            "good.py": "x = 1\n",
            "broken.py": "def f(:\n",
            "latin.py": b"x = 1\ny = 2\nz = 'caf\xe9'\n",
            "nul.py": b"x = 1\0\n",
            "large.py": b"#" * (1024 * 1024 + 1),
            "deep.py": "x = " + "-" * 100_000 + "1",
            "codec.py": "# coding: rot13\n",
            "surrogate.py": b"# coding: unicode_escape\nx = '\\ud800'\n",
        }
    )
    (root / "gone.py").symlink_to(root / "nowhere.py")
    os.mkfifo(root / "pipe.py")
    output, _ = review(root)
    reasons = {row["path"]: row["reason"] for row in output["unreadable"]}
    assert output["modules"] == 1
    assert set(reasons) == {path.name for path in root.iterdir()} - {"good.py"}
    assert reasons["broken.py"].startswith("syntax error in line 1: ")
    assert reasons["latin.py"] == "not text in UTF-8 or the encoding that it declares"
    assert reasons["nul.py"] == "contains a NUL byte"
    assert reasons["large.py"] == "skipped: larger than 1 MiB (1,048,577 bytes)"
    assert reasons["deep.py"] == "nested too deeply to be parsed"
    assert reasons["gone.py"] == "broken symbolic link"
    assert reasons["pipe.py"] == "not a regular file"
    text = Path(output["report_path"]).read_text(encoding="utf-8")
    assert all(f"- `{path}`: " in text for path in reasons)
    assert output["findings"][0].startswith("9 files could not be read")


def test_a_name_that_is_not_text_is_named_by_its_bytes(tree):
    root = tree({"good.py": "x = 1\n"})
    os.close(os.open(os.fsencode(root) + b"/\xff.py", os.O_CREAT | os.O_WRONLY))
    found = architecture({"path": str(root)}, RecordingCall())
    assert found["unreadable"] == [{"path": "\\xff.py", "reason": "its name is not valid UTF-8"}]


@pytest.fixture
def closed_tree():
    """A tree with a file and a folder that may not be read, below folders that any user may enter."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        root.chmod(0o755)
        (root / "closed").mkdir()
        for name in ("good.py", "secret.py", "closed/a.py"):
            (root / name).write_text("x = 1\n")
        (root / "secret.py").chmod(0)
        (root / "closed").chmod(0)
        superuser = os.geteuid() == 0
        if superuser:
            os.seteuid(65534)
        yield root
        if superuser:
            os.seteuid(0)
        root.chmod(0o755)
        (root / "closed").chmod(0o755)


def test_files_and_folders_without_permission_are_named(closed_tree):
    found = architecture({"path": str(closed_tree)}, RecordingCall())
    assert [row["path"] for row in found["modules"]] == ["good.py"]
    assert found["unreadable"] == [
        {"path": "closed/", "reason": "folder can't be listed: permission denied"},
        {"path": "secret.py", "reason": "permission denied"},
    ]


def test_a_folder_that_may_not_be_listed_is_refused(closed_tree):
    with pytest.raises(ValueError, match="can't be listed: permission denied"):
        architecture({"path": str(closed_tree / "closed")}, RecordingCall())


def test_a_tree_in_which_nothing_can_be_read_still_gets_a_report(tree):
    output, _ = review(tree({"a.py": "def f(:\n"}))
    assert output["modules"] == 0
    assert "`a.py`: syntax error in line 1" in Path(output["report_path"]).read_text(encoding="utf-8")


def test_the_step_of_a_model_is_added_and_the_definition_stays_as_it_is(tree):
    before = yaml.safe_load(yaml.safe_dump(DEFINITION))
    summed = with_summary(DEFINITION)
    assert before == DEFINITION
    assert parse_definition(summed).issues == []
    step = summed["steps"][-1]
    model, fallback = summary_agents("some-model")
    assert (step["agent_id"], step["fallback"]["agent_id"]) == (model["agent_id"], fallback["agent_id"])
    assert model["config"]["model"] == "some-model"
    output, steps = review(tree(LAYERED))
    told = resolve(step["input_mapping"], {"input": {}, "steps": steps})
    assert told == {"figures": output["summary"], "findings": output["findings"]}
    assert figures(told) == {"text": output["summary"]}


def test_a_file_lost_between_the_steps_is_named(tree):
    root = tree({"a.py": "import b\n", "b.py": ""})
    found = architecture({"path": str(root)}, RecordingCall())
    (root / "b.py").unlink()
    related = relationship({"root": found["root"], "modules": found["modules"]}, RecordingCall())
    assert related["unreadable"] == [{"path": "b.py", "reason": "no longer there"}]


def test_folders_that_are_not_source_are_left_out(tree):
    root = tree(
        {
            "app.py": "",
            "dist_tools/__init__.py": "",
            "build/lib/app.py": "",
            "sub/build/__init__.py": "",
            ".hidden/a.py": "",
            "__pycache__/a.py": "",
            "node_modules/a.py": "",
            "my_env/pyvenv.cfg": "",
            "my_env/a.py": "",
        }
    )
    (root / "loop").symlink_to(root, target_is_directory=True)
    found = architecture({"path": str(root)}, RecordingCall())
    assert [row["path"] for row in found["modules"]] == [
        "app.py",
        "dist_tools/__init__.py",
        "sub/build/__init__.py",
    ]


def test_the_number_of_files_is_bounded_and_the_report_says_so(tree, monkeypatch):
    monkeypatch.setattr("examples.code_review.source_tree.MAX_FILES", 2)
    output, _ = review(tree({"a.py": "", "b.py": "", "c.py": ""}))
    assert output["modules"] == 2
    assert any("the rest was not read" in finding for finding in output["findings"])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("relative/path", "must be an absolute path"),
        ("/no/such/folder", "There is nothing at /no/such/folder"),
        ("/dev/null", "neither a folder nor a Python file"),
    ],
)
def test_a_bad_path_is_refused_in_a_sentence(path, message):
    with pytest.raises(ValueError, match=message):
        architecture({"path": path}, RecordingCall())


def test_a_folder_without_python_and_a_missing_key_are_refused(tmp_path):
    with pytest.raises(ValueError, match="No Python file"):
        architecture({"path": str(tmp_path)}, RecordingCall())
    with pytest.raises(ValueError, match="'modules' must be a list of objects; it is missing or null"):
        detail({"root": str(tmp_path)}, RecordingCall())


def test_cancelling_ends_the_work_between_two_files(tree):
    root = tree({f"m{number}.py": "" for number in range(20)})
    call = RecordingCall(looks_until_cancelled=5)
    with pytest.raises(CancelledError):
        architecture({"path": str(root)}, call)
    assert not any(line.startswith("parsed 20") for line in call.emitted)


def test_progress_ends_with_all_files(tree):
    call = RecordingCall()
    architecture({"path": str(tree({f"m{number}.py": "" for number in range(50)}))}, call)
    assert call.emitted[1:] == ["parsed 40 of 50 modules", "parsed 50 of 50 modules"]


def test_a_repeated_report_is_the_same_file_and_leaves_nothing_beside_it(tree):
    root = tree(LAYERED)
    first, _ = review(root)
    before = Path(first["report_path"]).read_bytes()
    second, _ = review(root)
    assert second == first
    assert Path(first["report_path"]).read_bytes() == before
    assert [path.name for path in Path(first["report_path"]).parent.iterdir()] == ["review.md"]


def test_the_report_replaces_no_other_kind_of_file(tree):
    root = tree(LAYERED)
    _, steps = review(root)
    parts = {name: steps[name]["output"] for name in ("architecture", "detail", "relationship")}
    with pytest.raises(ValueError, match=r"ends in \.md"):
        report({**parts, "report_path": str(root / "shop" / "cart.py")}, RecordingCall())
    assert (root / "shop" / "cart.py").read_text() == LAYERED["shop/cart.py"]


def test_without_a_path_the_report_is_named_after_the_execution(tree, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    _, steps = review(tree(LAYERED))
    parts = {name: steps[name]["output"] for name in ("architecture", "detail", "relationship")}
    call = RecordingCall(execution_id="code-review/my key")
    output = report({**parts, "report_path": None}, call)
    assert output["report_path"] == str(tmp_path / "code-review-code-review-my-key.md")
    assert Path(output["report_path"]).exists()


def test_prose_and_tables_stay_within_100_columns(tree):
    names = {f"package_{number}/module_{number}.py": f"import module_{number - 1}\n" for number in range(60)}
    output, _ = review(tree(names))
    lines = Path(output["report_path"]).read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 100] == []


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("pass", 1),
        ("if a: pass\nelif b: pass\nelse: pass", 3),
        ("for x in a: pass\nelse: pass", 2),
        ("while a and b or c: pass", 4),
        ("try: pass\nexcept A: pass\nexcept B: pass\nfinally: pass", 3),
        ("return [x for x in a if x if y] if b else c", 5),
        ("match a:\n case 1: pass\n case 2: pass\n case _: pass", 3),
        ("match a:\n case 1: pass\n case x if x: pass", 3),
        ("def inner():\n if a: pass\nreturn inner", 1),
        ("return lambda: a if b else c", 2),
    ],
)
def test_complexity_is_decisions_and_one(body, expected):
    text = "def f():\n" + "\n".join(f"  {line}" for line in body.splitlines())
    assert complexity(ast.parse(text).body[0]) == expected


def test_docstrings_are_asked_of_what_is_public_once():
    measure = measure_module(
        ast.parse(
            '"""Module."""\n'
            "class Public:\n"
            "  def method(self):\n    '''Doc.'''\n    def inner(): ...\n"
            "  def __init__(self): ...\n"
            "  @property\n  def size(self): ...\n"
            "  @size.setter\n  def size(self, value): ...\n"
            "class _Private:\n  def method(self): ...\n"
            "if True:\n  async def bare(): ...\n"
        )
    )
    assert (measure.documented, measure.documentable) == (2, 5)
    assert [function.name for function in measure.functions] == [
        "Public.method",
        "Public.method.inner",
        "Public.__init__",
        "Public.size",
        "Public.size",
        "_Private.method",
        "bare",
    ]


def test_public_names_follow_all_or_the_underscore():
    assert public_names(ast.parse("__all__ = ['b', '_c']\ndef a(): ...")) == ["b", "_c"]
    assert public_names(ast.parse("import os\nA: int = 1\n_b = 2\nclass C: ...\ndef _d(): ...")) == ["A", "C"]


def test_imports_are_followed_in_all_their_forms(tree):
    related = relate(
        tree(
            {
                "src/pkg/__init__.py": "",
                "src/pkg/a.py": "from . import b\nfrom .sub import c as d\nfrom .b import name\n",
                "src/pkg/b.py": "import json, pkg.sub.c\n",
                "src/pkg/sub/__init__.py": "from ..b import x\n",
                "src/pkg/sub/c.py": "import yaml\nfrom pkg import missing\n",
                "scripts/run.py": "import tool\nimport types\n",
                "scripts/tool.py": "",
                "scripts/types.py": "",
            }
        )
    )
    arrows = {(arrow["importer"], arrow["imported"]) for arrow in related["graph"]["arrows"]}
    assert arrows == {
        ("pkg.a", "pkg.b"),
        ("pkg.a", "pkg.sub.c"),
        ("pkg.b", "pkg.sub.c"),
        ("pkg.sub", "pkg.b"),
        ("pkg.sub.c", "pkg"),
        ("scripts.run", "scripts.tool"),
    }
    assert related["external"] == [{"name": "yaml", "modules": 1}]
    assert related["isolated"] == ["scripts.types"]


def test_cycles_at_load_time_are_told_from_deferred_ones(tree):
    related = relate(
        tree(
            {
                "a.py": "x = 1\nimport b\n",
                "b.py": "import c\n",
                "c.py": "if x:\n    import a\n",
                "d.py": "import e\n",
                "e.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import d\ndef f():\n    import a\n",
            }
        )
    )
    assert [(cycle["modules"], cycle["size"]) for cycle in related["cycles"]] == [(["a", "b", "c"], 3)]
    assert [(step["module"], step["line"]) for step in related["cycles"][0]["path"]] == [
        ("a", 2),
        ("b", 1),
        ("c", 2),
    ]
    assert [cycle["modules"] for cycle in related["deferred_cycles"]] == [["d", "e"]]
    assert related["layers"] == [
        {"layer": 1, "modules": ["a", "b", "c", "e"]},
        {"layer": 2, "modules": ["d"]},
    ]
    assert related["graph"]["in_cycle"] == ["a", "b", "c"]


def test_components_of_a_long_chain_need_no_recursion():
    size = 5_000
    graph = {str(node): [str(node + 1)] for node in range(size)} | {str(size): []}
    components = strong_components(graph)
    assert len(components) == size + 1
    assert layers(graph, components)["0"] == size + 1
    graph[str(size)] = ["0"]
    assert len(strong_components(graph)) == 1


def test_a_layer_lies_above_the_highest_that_it_imports():
    graph = {"a": ["b", "c"], "b": ["c"], "c": []}
    assert layers(graph, strong_components(graph)) == {"a": 3, "b": 2, "c": 1}


def test_the_shortest_of_several_cycles_is_shown():
    graph = {"a": ["b"], "b": ["c"], "c": ["a", "d"], "d": ["c"]}
    assert shortest_cycle(graph, ["a", "b", "c", "d"]) == ["c", "d"]


def test_a_large_tree_is_drawn_as_packages_and_stays_small():
    modules = {f"p{package}.m{module}": False for package in range(60) for module in range(3)}
    edges = [Edge(f"p{number}.m0", f"p{number + 1}.m1", 1, deferred=False) for number in range(59)]
    drawing = draw(modules, edges)
    assert drawing.level == "packages"
    assert len(drawing.nodes) == MAX_NODES
    assert drawing.hidden == 20


def test_an_arrow_that_a_longer_way_implies_is_left_out():
    modules = {f"m{number:02}": False for number in range(12)}
    every = [Edge(low, high, 1, deferred=False) for low in sorted(modules) for high in sorted(modules) if low < high]
    drawing = draw(modules, every)
    assert [(arrow.importer, arrow.imported) for arrow in drawing.arrows] == [
        (f"m{number:02}", f"m{number + 1:02}") for number in range(11)
    ]
    assert drawing.implied == len(every) - 11


def test_names_of_files_cannot_break_the_report(tree):
    output, _ = review(tree({'a"]b|c`.py': "x = 1\n", "d.py": "x = (\n"}))
    text = Path(output["report_path"]).read_text(encoding="utf-8")
    assert 'n0["a#34;#93;b#124;c#96;"]' in text
    assert '| `` a"]b\\|c` `` |' in text


def test_generated_modules_are_counted_and_not_measured(tree):
    _, steps = review(
        tree({"a.py": "def f(): ...\n", "a_pb2.py": "# Generated by protoc. DO NOT EDIT!\ndef g(): ...\n"})
    )
    assert steps["architecture"]["output"]["totals"]["generated"] == 1
    assert [row["module"] for row in steps["detail"]["output"]["modules"]] == ["a"]


def test_a_tree_of_tests_only_is_measured(tree):
    _, steps = review(tree({"test_a.py": "def test_f(): ...\n"}))
    assert steps["detail"]["output"]["totals"]["functions"] == 1


def test_one_file_of_a_package_keeps_its_dotted_name(tree):
    root = tree({"pkg/__init__.py": "", "pkg/mod.py": "def f(): ...\n"})
    found = architecture({"path": str(root / "pkg" / "mod.py")}, RecordingCall())
    assert [row["module"] for row in found["modules"]] == ["pkg.mod"]


def test_a_path_through_a_link_is_named_by_its_target(tree, tmp_path):
    root = tree({"a.py": "", "sub/b.py": ""})
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    for path in (tmp_path / "link", root / "sub" / ".."):
        found = architecture({"path": str(path)}, RecordingCall())
        assert (found["name"], found["root"]) == ("tree", str(root))


def test_odd_literals_in_reviewed_files_warn_nobody(tree):
    found = architecture({"path": str(tree({"a.py": "x = '\\d'\n"}))}, RecordingCall())
    assert found["unreadable"] == []
