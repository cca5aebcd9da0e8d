"""S1 to S4: expressions run nothing, reach data only, are never read twice, and cost what their length says."""

from __future__ import annotations

import ast
import json
import sys
from itertools import pairwise
from pathlib import Path as FilePath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.domain import conditions, expressions, paths
from engine.domain.conditions import MAX_CONDITION_DEPTH, MAX_CONDITION_NODES, parse_condition, parse_trigger
from engine.domain.expressions import (
    MAX_TEMPLATE_CHARS,
    MAX_TEMPLATE_DEPTH,
    MAX_TEMPLATE_NODES,
    MAX_TEMPLATE_PATHS,
    MISSING,
    ExpressionError,
    MissingPathError,
    ResolvedTooLargeError,
    RootsScope,
    compile_template,
    json_size,
    parse_path,
    walk,
)
from engine.domain.paths import MAX_EXPRESSION_CHARS, MAX_PATH_SEGMENTS

CHECKOUT = FilePath(__file__).parents[2]
LANGUAGE_FILES = [FilePath(module.__file__) for module in (paths, expressions, conditions)]
PACKAGE_FILES = sorted(
    file for package in ("engine", "activities", "workflows") for file in (CHECKOUT / package).rglob("*.py")
)
EVALUATORS = {"eval", "exec", "compile", "__import__"}
REACHING = EVALUATORS | {"getattr", "setattr", "delattr", "vars", "globals", "locals", "open", "breakpoint"}
LANGUAGE_IMPORTS = {"__future__", "collections.abc", "dataclasses", "difflib", "enum", "json", "math", "typing"}


def called_names(source: str) -> set[str]:
    return {
        node.func.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


def breaches(source: str) -> list[str]:
    """What a module of the language must not contain."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and node.id in REACHING:
            found.append(node.id)
        elif isinstance(node, ast.Attribute) and node.attr in ("format", "format_map"):
            found.append(node.attr)
        elif isinstance(node, ast.Attribute) and node.attr.startswith("__"):
            # The errors' super().__init__, the plain text of a number, and a type's name for a message.
            if node.attr not in ("__init__", "__repr__", "__name__"):
                found.append(node.attr)
        elif isinstance(node, ast.Import):
            found.extend(name.name for name in node.names if name.name not in LANGUAGE_IMPORTS)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module not in LANGUAGE_IMPORTS and not module.startswith("engine.domain."):
                found.append(module)
    return found


class TestNoEvaluator:
    """S1."""

    @pytest.mark.parametrize("file", LANGUAGE_FILES, ids=lambda file: file.name)
    def test_the_language_has_no_door_to_python(self, file):
        assert breaches(file.read_text(encoding="utf-8")) == []

    @pytest.mark.parametrize(
        "source",
        ["eval(x)", "f = exec", "getattr(a, b)", "'{}'.format(x)", "import re", "from re import match", "a.__dict__"],
    )
    def test_the_check_sees_a_door(self, source):
        assert breaches(source) != []

    def test_no_package_evaluates_text(self):
        assert len(PACKAGE_FILES) > 3
        guilty = [
            str(file.relative_to(CHECKOUT))
            for file in PACKAGE_FILES
            if called_names(file.read_text(encoding="utf-8")) & EVALUATORS
        ]
        assert guilty == []

    BODIES = (
        "__class__",
        "__class__.__mro__[1].__subclasses__()",
        "__class__.__base__.__subclasses__()[0]",
        "__init__.__globals__['os'].system('id')",
        "__globals__",
        "__builtins__.eval('1')",
        "__import__('os').system('id')",
        "__dict__",
        "__getattribute__('x')",
        "__reduce__()",
        "__proto__",
        "__proto__.polluted",
        "constructor",
        "constructor.constructor('return process')()",
        "constructor.prototype",
        "prototype.toString",
        "toString()",
        "valueOf",
        "items",
        "items()",
        "keys()",
        "get('secret')",
        "pop",
        "format",
        "format(1)",
        "{0.__class__}",
        "{secret}",
        "{{7*7}}",
        "{% print(1) %}",
        "<%= 7*7 %>",
        "#{7*7}",
        "@{7*7}",
        "7*7",
        "7**7**7",
        "1+1",
        "1;1",
        "a or __import__('os')",
        "lambda: 0",
        "[x for x in y]",
        "f'{secret}'",
        "`id`",
        "$(id)",
        "%(secret)s",
        "%s",
        "|attr('__class__')",
        "request.application",
        "self.__init__",
        "cycler.__init__",
        "\uff49nput.\uff53ecret",
        "\u0456nput.s\u0435\u0441ret",
        "\u0131nput",
        "in\u200bput",
        "_\u203f_class_\u203f_",
        "\uff3f\uff3fclass\uff3f\uff3f",
        "\u202esecret",
        "\x00",
        "\\u0073ecret",
        "\\x73ecret",
        "${secret}",
        "${${secret}}",
        "$${secret}",
        "}${secret}",
        "} ${secret} ${",
        "' + secret + '",
        '" + secret + "',
        "']['secret",
        '"]["secret',
        "'] ?? secret ?? ['",
        "?? secret",
        "?.secret",
        "..secret",
        "*",
        "**.secret",
        "[*].secret",
        "$.secret",
        "//secret",
        "-1",
        "[-1]",
        "[0:1]",
        "[::]",
        "0x10",
        "../secret",
        "!!python/object/apply:os.system ['id']",
    )
    WRAPPERS = (
        "${%s}",
        "${input%s}",
        "${input.%s}",
        "${input[%s]}",
        "${input['%s']}",
        '${input["%s"]}',
        "${input.a ?? %s}",
        "text ${input.a}%s",
    )

    def test_known_escapes_are_refused_or_taken_as_text(self):
        scope = RootsScope({"input": {"a": "value"}, "secret": "MARKER"})
        tried = 0
        for body in self.BODIES:
            for wrapper in self.WRAPPERS:
                tried += 1
                text = wrapper.replace("%s", body)
                try:
                    result = compile_template(text, roots=["input"]).resolve(scope)
                except (ExpressionError, MissingPathError):
                    continue
                # What is left: the one value there is, a literal, or the text itself with it put in.
                assert isinstance(result, (str, int, float, dict, type(None)))
                assert "MARKER" not in json.dumps(result)
                if isinstance(result, str) and wrapper == "text ${input.a}%s":
                    assert result == "text value" + body.replace("$${", "${")
        assert tried >= 500

    def test_known_escapes_in_conditions_are_refused_or_never_hold(self):
        scope = RootsScope({"input": {"a": "value"}, "secret": "MARKER"})
        tried = 0
        for body in self.BODIES:
            for wrapper in (*self.WRAPPERS[:7], "%s", "input.%s", "has(input.%s)", "input.a = %s"):
                for text in (wrapper, f"{wrapper} = 'MARKER'", f"'MARKER' in [{wrapper}]"):
                    tried += 1
                    try:
                        condition = parse_condition(text.replace("%s", body), roots=["input"])
                    except ExpressionError:
                        continue
                    assert condition.evaluate(scope) is False, condition.text
        assert tried >= 500

    @pytest.mark.parametrize("text", ["input.items()", "input.a.upper()", "eval('1')", "open('x')", "input.a('x')"])
    def test_nothing_can_be_called(self, text):
        with pytest.raises(ExpressionError):
            parse_condition(f"{text} = 1", roots=["input"])


class Trap:
    """An object that must be touched by nobody."""

    def __getattribute__(self, name):
        raise AssertionError(f"reached the attribute {name}")

    def __getitem__(self, key):
        raise AssertionError(f"reached the item {key}")

    def __contains__(self, key):
        raise AssertionError(f"asked for {key}")


class HostileDict(dict):
    def __getitem__(self, key):
        raise AssertionError(f"reached the item {key}")

    def __contains__(self, key):
        raise AssertionError(f"asked for {key}")


class HostileList(list):
    def __getitem__(self, index):
        raise AssertionError(f"reached the item {index}")

    def __len__(self):
        raise AssertionError("asked for the length")


class HostileText(str):
    __slots__ = ()

    def __hash__(self):
        raise AssertionError("hashed")


hostile_keys = st.sampled_from(
    ["__class__", "__dict__", "__proto__", "constructor", "items", "keys", "get", "append", "0", "-1", "", "a"]
) | st.text(max_size=5)
hostile_segments = st.lists(hostile_keys | st.integers(-(2**70), 2**70), max_size=5)
data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(hostile_keys, inner, max_size=3),
    max_leaves=10,
)


class TestDataOnly:
    """S2."""

    @pytest.mark.parametrize("make", [Trap, lambda: HostileDict(a=1), lambda: HostileList([1])])
    @pytest.mark.parametrize("segment", ["a", "__class__", "items", 0, 10**9])
    def test_what_is_no_plain_container_is_not_entered(self, make, segment):
        trap = make()
        assert walk({"trap": trap}, ("trap", segment)) is MISSING
        assert walk([trap], (0, segment, segment)) is MISSING

    @pytest.mark.parametrize("segment", [True, False, None, 1.0, b"a", ("a",), HostileText("a")])
    def test_odd_segments_find_nothing(self, segment):
        assert walk({"a": 1}, (segment,)) is MISSING
        assert walk([1, 2], (segment,)) is MISSING

    @given(value=data, segments=hostile_segments)
    @settings(max_examples=300, deadline=None, derandomize=True)
    def test_a_lookup_finds_what_is_there_and_nothing_else(self, value, segments):
        known = {(): value}
        pending = [((), value)]
        while pending:
            place, here = pending.pop()
            children = here.items() if isinstance(here, dict) else enumerate(here) if isinstance(here, list) else ()
            for key, child in children:
                known[*place, key] = child
                pending.append(((*place, key), child))
        assert walk(value, segments) is known.get(tuple(segments), MISSING)
        for place, child in known.items():
            assert walk(value, place) is child

    @pytest.mark.parametrize("key", ["__class__", "__proto__", "constructor", "items", "-1", "[0]", "a.b", "${a}", "}"])
    def test_a_dangerous_name_is_a_key_like_any_other(self, key):
        template = compile_template("${input[" + json.dumps(key) + "]}")
        assert template.resolve(RootsScope({"input": {key: "data"}})) == "data"
        with pytest.raises(MissingPathError):
            template.resolve(RootsScope({"input": {}}))
        with pytest.raises(MissingPathError):
            template.resolve(RootsScope({"input": ["list"]}))


MARKERS = ("${input.secret}", "${secret}", "$${input.secret}", "a ${input.secret} b", "${input.secret ?? 1}", "}${")
planted = st.recursive(
    st.sampled_from(MARKERS) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(MARKERS), inner, max_size=3),
    max_leaves=8,
)


class TestNoSecondExpansion:
    """S3."""

    @given(tree=planted)
    @settings(max_examples=300, deadline=None, derandomize=True)
    def test_planted_markers_stay_text_on_the_whole_road(self, tree):
        execution = {"secret": "LEAKED", "tree": tree}
        written = tree if isinstance(tree, str) else json.dumps(tree, ensure_ascii=False, separators=(",", ":"))

        given_to_agent = compile_template({"v": "${input.tree}", "t": "<${input.tree}>"}).resolve(
            RootsScope({"input": execution})
        )
        assert given_to_agent == {"v": tree, "t": f"<{written}>"}

        mapped = compile_template({"v": "${output.v}", "t": "${output.t}", "d": "${output.no ?? '$${input.secret}'}"})
        stored = mapped.resolve(RootsScope({"output": given_to_agent, "input": execution}))
        assert stored == {"v": tree, "t": f"<{written}>", "d": "${input.secret}"}

        scope = RootsScope({"source_output": stored, "input": execution})
        handed_over = compile_template(["${source_output.v}", "${source_output.d}"]).resolve(scope)
        assert handed_over == [tree, "${input.secret}"]
        assert parse_condition("source_output.d = 'LEAKED' or source_output.v = 'LEAKED'").evaluate(scope) is False

    @pytest.mark.parametrize("marker", MARKERS)
    def test_a_marker_in_a_value_is_only_equal_to_itself(self, marker):
        scope = RootsScope({"input": {"secret": "LEAKED", "typed": marker}})
        assert parse_condition("input.typed = input.secret").evaluate(scope) is False
        literal = marker.replace("$${", "${").replace("${", "$${")
        expected = marker.replace("$${", "${") == marker
        assert parse_condition(f"input.typed = '{literal}'").evaluate(scope) is expected

    def test_keys_of_a_mapping_are_not_expanded(self):
        scope = RootsScope({"input": {"a": "x"}})
        assert compile_template({"${input.a}": "${input.a}"}).resolve(scope) == {"${input.a}": "x"}


def lines_run(call, *arguments) -> int:
    """Count the lines of Python that ``call`` runs: a measure of work that no other load changes."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call(*arguments)
    except (ExpressionError, ResolvedTooLargeError):
        pass
    finally:
        sys.settrace(before)
    return count


LINEAR = {
    "names": (parse_path, lambda n: "a" * n),
    "text": (compile_template, lambda n: "${a}" + "$ { }" * n),
    "open braces": (compile_template, lambda n: "$${" * n),
    "dollars": (compile_template, lambda n: "$" * n + "{"),
    "expressions": (compile_template, lambda n: "${a.b} " * (n // 8)),
    "unclosed": (compile_template, lambda n: "${" * n),
    "unclosed string": (compile_template, lambda n: "${a['" + "x" * n),
    "escapes": (compile_template, lambda n: "${a['" + "\\n" * n + "']}"),
    "quoted keys": (compile_template, lambda n: "${a['k'][0]} " * (n // 16)),
    "defaults": (compile_template, lambda n: "${a ?? '" + "$${" * n + "'}"),
    "spaces": (parse_condition, lambda n: " " * n + "a"),
    "spaces between": (parse_condition, lambda n: "a" + " " * n + "= 1"),
    "long word": (parse_condition, lambda n: "a " + "b" * n),
    "or": (parse_condition, lambda n: " or ".join(["a"] * (n // 4))),
    "and of comparisons": (parse_condition, lambda n: "&&".join(["a=1"] * (n // 4))),
    "list": (parse_condition, lambda n: "a in [" + ",".join(["1"] * (n // 4)) + "]"),
    "negations": (parse_condition, lambda n: "!" * n + "a"),
    "brackets": (parse_condition, lambda n: "(" * n + "a" + ")" * n),
    "digits": (parse_condition, lambda n: "1" * n + " = 1"),
}


class TestCost:
    """S4."""

    @pytest.mark.parametrize("name", LINEAR)
    def test_work_is_linear_in_the_length(self, name):
        call, make = LINEAR[name]
        counts = [lines_run(call, make(n)) for n in (500, 1000, 2000)]
        for smaller, larger in pairwise(counts):
            assert larger <= 2.2 * smaller + 200, counts
        # An absolute bound too: a parse that repeats itself a fixed number of times would be "linear".
        assert counts[-1] <= 80 * len(make(2000)) + 400, counts

    def test_the_count_would_see_quadratic_work(self):
        def quadratic(text):
            for end in range(len(text)):
                for _ in text[:end]:
                    pass

        assert lines_run(quadratic, "a" * 200) > 3 * lines_run(quadratic, "a" * 100)

    @pytest.mark.parametrize(
        ("call", "text"),
        [
            (compile_template, "${" * 524_288),
            (compile_template, "${a}" + "x" * 1_048_576),
            (compile_template, "${" + "[" * 100_000),
            (compile_template, "${a" + "." * 1_000_000),
            (parse_path, "a" + "." * 1_000_000),
            (parse_path, "a" + ".b" * 500_000),
            (parse_condition, "(" * 100_000 + "a" + ")" * 100_000),
            (parse_condition, "${" * 524_288),
            (parse_condition, "not " * 262_144 + "a"),
            (parse_condition, "a = '" + "x" * 1_048_576 + "'"),
            (lambda text: parse_trigger([text]), "completion " * 100_000),
        ],
    )
    def test_what_is_too_long_is_refused_before_it_is_read(self, call, text):
        with pytest.raises(ExpressionError, match="characters; at most"):
            call(text)
        assert lines_run(call, text) < 100

    @pytest.mark.parametrize("opening", ["(", "[", "!", "not ", "size(", "contains(", "!(", "not ("])
    def test_depth_is_bounded(self, opening):
        with pytest.raises(ExpressionError, match="nested deeper than 32"):
            parse_condition(opening * (MAX_CONDITION_DEPTH + 1) + "a")
        assert lines_run(parse_condition, opening * 2000 + "a") < 10_000

    @pytest.mark.parametrize("part", ["(a)", "[a] = [true]", "!false", "not false", "has(a)", "size([]) = 0"])
    def test_only_nesting_counts_as_depth(self, part):
        text = " and ".join([part] * (MAX_CONDITION_DEPTH + 1))
        assert parse_condition(text).evaluate(RootsScope({"a": True})) is True

    def test_the_deepest_allowed_condition_is_read_and_evaluated(self):
        text = "(" * MAX_CONDITION_DEPTH + "a and true" + ")" * MAX_CONDITION_DEPTH
        assert parse_condition(text).evaluate(RootsScope({"a": True})) is True
        text = "not " * MAX_CONDITION_DEPTH + "a"
        assert parse_condition(text).evaluate(RootsScope({"a": True})) is True

    def test_operands_are_bounded(self):
        most = ",".join(["1"] * (MAX_CONDITION_NODES - 1))
        assert parse_condition(f"a in [{most[:-2]}]").evaluate(RootsScope({"a": 1})) is True
        with pytest.raises(ExpressionError, match="more than 1000 operands"):
            parse_condition(f"a in [{most},1]")

    def test_the_limits_themselves_are_allowed(self):
        assert parse_path("a" * MAX_EXPRESSION_CHARS).root == "a" * MAX_EXPRESSION_CHARS
        assert len(parse_path("a" + "[0]" * MAX_PATH_SEGMENTS).segments) == MAX_PATH_SEGMENTS
        text = "${a}" + "x" * (MAX_TEMPLATE_CHARS - 4)
        assert compile_template(text).resolve(RootsScope({"a": 1})) == "1" + text[4:]
        constant = "x" * (MAX_TEMPLATE_CHARS + 1)
        assert compile_template(constant).resolve(RootsScope({})) == constant

    def test_templates_are_bounded_in_depth_nodes_and_expressions(self):
        def nested(depth):
            value = "${a}"
            for _ in range(depth):
                value = [value]
            return value

        assert compile_template(nested(MAX_TEMPLATE_DEPTH)).resolve(RootsScope({"a": 1}))
        with pytest.raises(ExpressionError, match="deeper than 64"):
            compile_template(nested(MAX_TEMPLATE_DEPTH + 1))
        with pytest.raises(ExpressionError, match="deeper than 64"):
            compile_template(nested(100_000))
        assert compile_template([1] * (MAX_TEMPLATE_NODES - 1)).paths == ()
        with pytest.raises(ExpressionError, match="more than 20000 values"):
            compile_template([1] * MAX_TEMPLATE_NODES)
        most = ["${a}" * 1000] * (MAX_TEMPLATE_PATHS // 1000)
        assert len(compile_template(most).paths) == 1
        with pytest.raises(ExpressionError, match="more than 20000 "):
            compile_template([*most, "${a}"])

    @pytest.mark.parametrize(
        "template",
        [{"a": "${input}", "b": "${input}"}, ["${input}", "${input}"], "${input}${input}", {"k": "${input} ${input}"}],
        ids=["object", "list", "text", "text in object"],
    )
    def test_a_value_that_doubles_itself_stops_at_the_limit(self, template):
        limit = 65_536
        compiled = compile_template(template)
        value = "laugh"
        doublings = 0
        while doublings < 64:
            scope = RootsScope({"input": value})
            assert lines_run(compiled.resolve, scope, limit) < 40 * limit
            try:
                value = compiled.resolve(scope, limit)
            except ResolvedTooLargeError as error:
                assert error.limit_bytes == limit
                break
            doublings += 1
        assert 5 < doublings < 20

    def test_a_bomb_of_shared_values_is_measured_no_further_than_the_limit(self):
        bomb = ["laugh"]
        for _ in range(60):
            bomb = [bomb, bomb]
        scope = RootsScope({"input": bomb})
        for template in ("${input}", "text ${input}", {"a": ["${input}"]}):
            assert lines_run(compile_template(template).resolve, scope, 10_000) < 400_000
            with pytest.raises(ResolvedTooLargeError):
                compile_template(template).resolve(scope, 10_000)
        assert 10_000 < json_size(bomb, 10_000) < 10_100
        assert parse_condition("input = input and input in [input] and size(input) = 2").evaluate(scope) is True

    def test_values_as_deep_as_an_agent_likes_need_no_recursion(self):
        deep, same = 1, 1.0
        for _ in range(100_000):
            deep, same = [deep], [same]
        scope = RootsScope({"a": deep, "b": same})
        assert json_size(deep) == 200_001
        assert compile_template("<${a}>").resolve(scope) == "<" + "[" * 100_000 + "1" + "]" * 100_000 + ">"
        assert parse_condition("a = b and not (a != b) and a in [b]").evaluate(scope) is True
