"""Paths and templates: what they accept, what they yield, what their errors say."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.domain import expressions as ex
from engine.domain.paths import MAX_PATH_SEGMENTS

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
segments = st.lists(st.text(max_size=6) | st.integers(0, 10**15 - 1), max_size=6)
INPUT = {
    "topic": "tea",
    "n": 3,
    "half": 0.5,
    "yes": True,
    "none": None,
    "list": ["a", {"b": 1}],
    "any key": [7],
    "é": "accent",
    "0": "zero",
    "a-b": "dash",
}
SCOPE = ex.RootsScope({"input": INPUT, "steps": {"a": {"output": {"plan": {"title": "Tee ☕"}}}}})


def json_text(value) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class TestPaths:
    @pytest.mark.parametrize(
        ("text", "root", "parts", "normal"),
        [
            ("input", "input", (), "input"),
            ("steps.a.output.plan", "steps", ("a", "output", "plan"), "steps.a.output.plan"),
            ('input["any key"][0]', "input", ("any key", 0), 'input["any key"][0]'),
            (" input[ 'topic' ] ", "input", ("topic",), "input.topic"),
            ("input.0", "input", ("0",), "input.0"),
            ("input.a-b._", "input", ("a-b", "_"), "input.a-b._"),
            ("input[0][12]", "input", (0, 12), "input[0][12]"),
            (r'input["\"\\\/\b\f\n\r\t"]', "input", ('"\\/\b\f\n\r\t',), r'input["\"\\/\b\f\n\r\t"]'),
            (r"input['it\'s']", "input", ("it's",), 'input["it\'s"]'),
            (r'input["\u00e9\ud83d\ude00"]', "input", ("é😀",), 'input["é😀"]'),
            ("input['']", "input", ("",), 'input[""]'),
            ("_x-1.y", "_x-1", ("y",), "_x-1.y"),
        ],
    )
    def test_reads(self, text, root, parts, normal):
        assert ex.parse_path(text) == ex.Path(root, parts, normal)

    @pytest.mark.parametrize(
        ("text", "position", "says"),
        [
            ("", 0, "expected a path"),
            (".a", 0, "expected a path"),
            ("1a", 0, "expected a path"),
            ("-a", 0, "expected a path"),
            ("é.a", 0, "expected a path"),
            ("input.", 6, "expected a name"),
            ("input..a", 6, "expected a name"),
            ("input.é", 6, "['...']"),
            ("input[", 6, "expected an index"),
            ("input[]", 6, "expected an index"),
            ("input[-1]", 6, "index from 0"),
            ("input[a]", 6, "expected an index"),
            ("input[01]", 6, "leading zeros"),
            ("input[1", 7, "expected ']'"),
            ("input[1.5]", 7, "expected ']'"),
            (f"input[{'9' * 16}]", 6, "15 digits"),
            ('input["a', 6, "no closing"),
            (r'input["\x41"]', 7, "unknown escape"),
            (r'input["\u00g0"]', 7, "unknown escape"),
            (r'input["\u+123"]', 7, "unknown escape"),
            (r'input["\ud800"]', 7, "surrogate"),
            (r'input["\udc00\ud800"]', 7, "surrogate"),
            ("input a", 6, "found 'a'"),
            ("input()", 5, "found '('"),
            ("input ?? 1", 6, "found '?'"),
            ("input" + ".a" * (MAX_PATH_SEGMENTS + 1), 0, "64 segments"),
        ],
    )
    def test_refuses(self, text, position, says):
        with pytest.raises(ex.ExpressionError) as caught:
            ex.parse_path(text)
        assert says in caught.value.message
        assert (caught.value.position, caught.value.text) == (position, text)
        assert str(caught.value).endswith(f"(at character {position + 1})")

    @given(parts=segments)
    @settings(max_examples=150, deadline=None, derandomize=True)
    def test_rendering_is_the_inverse_of_parsing(self, parts):
        path = ex.parse_path(ex.render_path("root", parts))
        assert path.segments == tuple(parts)
        assert [type(segment) for segment in path.segments] == [type(part) for part in parts]

    @pytest.mark.parametrize(
        ("parts", "value"),
        [
            ((), INPUT),
            (("topic",), "tea"),
            (("none",), None),
            (("list", 1, "b"), 1),
            (("list", 2), ex.MISSING),
            (("list", -1), ex.MISSING),
            (("list", "0"), ex.MISSING),
            (("list", True), ex.MISSING),
            (("topic", 0), ex.MISSING),
            (("none", "x"), ex.MISSING),
            (("nowhere", "x"), ex.MISSING),
            ((0,), ex.MISSING),
            (("0",), "zero"),
        ],
    )
    def test_walk(self, parts, value):
        assert ex.walk(INPUT, parts) is value or ex.walk(INPUT, parts) == value
        assert (ex.walk(INPUT, parts) is ex.MISSING) == (value is ex.MISSING)

    def test_missing_is_one_object(self):
        assert repr(ex.MISSING) == "MISSING"
        assert copy.deepcopy(ex.MISSING) is ex.MISSING
        assert pickle.loads(pickle.dumps(ex.MISSING)) is ex.MISSING


class TestTemplates:
    @pytest.mark.parametrize(
        ("template", "result"),
        [
            ("plain", "plain"),
            ("", ""),
            (5, 5),
            (None, None),
            ("${input.n}", 3),
            ("${ input.n }", 3),
            ("${input.yes}", True),
            ("${input.none}", None),
            ("${input.list}", ["a", {"b": 1}]),
            ('${input["any key"][0]}', 7),
            ('${input["é"]}', "accent"),
            ("${steps.a.output.plan.title}!", "Tee ☕!"),
            (" ${input.n}", " 3"),
            ("${input.n}${input.n}", "33"),
            ("n=${input.n}, h=${input.half}", "n=3, h=0.5"),
            ("${input.yes}/${input.none}", "true/null"),
            ("list: ${input.list}", 'list: ["a",{"b":1}]'),
            ("plan: ${steps.a.output.plan}", 'plan: {"title":"Tee ☕"}'),
            ("$${input.n}", "${input.n}"),
            ("$${a} $${b} ${input.n}", "${a} ${b} 3"),
            ("$$${x}", "$${x}"),
            ("${input.n}$${x}", "3${x}"),
            ("${input.n} costs 5$", "3 costs 5$"),
            ("5 $ and } and {x} and $x", "5 $ and } and {x} and $x"),
            ({"${input.n}": ["${input.n}", {"k": "v"}]}, {"${input.n}": [3, {"k": "v"}]}),
            ({}, {}),
            ("${input.no ?? null}", None),
            ("${input.no ?? true}", True),
            ("${input.no ?? false}", False),
            ("${input.no ?? -1.5e2}", -150.0),
            ("${input.no ?? 0}", 0),
            ("${input.no ?? 'it\\'s }'}", "it's }"),
            ('${input.no??"$${x}"}', "${x}"),
            ("${input.none ?? 'null takes the default'}", "null takes the default"),
            ("${input.yes ?? 1}", True),
            ("${input.n ?? 9}", 3),
            ("${other.root ?? 1}", 1),
            ("a ${input.no ?? 'd'} b ${input.no ?? null}", "a d b null"),
        ],
    )
    def test_resolves(self, template, result):
        compiled = ex.compile_template(template)
        resolved = compiled.resolve(SCOPE)
        assert json_text(resolved) == json_text(result)
        assert type(resolved) is type(result)
        assert compiled.resolve(SCOPE) == resolved

    @pytest.mark.parametrize(
        ("template", "position", "says"),
        [
            ("${", 2, "expected a path"),
            ("a ${}", 4, "expected a path"),
            ("${input.n", 9, "expected '}'"),
            ("${input.n + 1}", 10, "expected '}'"),
            ("${${input.n}}", 2, "expected a path"),
            ("${input.n ?? input.n}", 13, "expected null, true"),
            ("${input.n ?? 'a}", 13, "no closing"),
            ("${input.n ?? '${x}'}", 13, "inside quotes"),
            ("${input.n ?? 1 ?? 2}", 15, "expected '}'"),
            ("${input.n ?? 01}", 13, "no number"),
            ("${input.n ?? 1.}", 13, "no number"),
            ("${input.n ?? -}", 13, "no number"),
            ("${input.n ?? 1e}", 13, "no number"),
            ("${input.n ?? 1x}", 13, "no number"),
            ("${input.n ?? 1e999}", 13, "too large"),
            (f"${{input.n ?? {'1' * 65}}}", 13, "64 characters"),
            ("ok ${input.n} ${inpt.n}", 16, "did you mean 'input'? Readable here: execution, input."),
            ("echo ${HOME}", 7, "unknown root 'HOME'. Readable here: execution, input. Write $${"),
        ],
    )
    def test_refuses(self, template, position, says):
        with pytest.raises(ex.ExpressionError) as caught:
            ex.compile_template({"deep": [template]}, roots={"input", "execution"})
        assert says in caught.value.message
        assert (caught.value.position, caught.value.text) == (position, template)

    @pytest.mark.parametrize("value", [object(), b"x", (1,), {"a": {1, 2}}])
    def test_refuses_what_is_no_json(self, value):
        with pytest.raises(ex.ExpressionError, match="is no JSON value"):
            ex.compile_template([value])

    def test_lists_distinct_paths_in_order(self):
        template = ex.compile_template(
            {"b": "${input.b} ${input.a}", "a": ["${input.b}", "${input.b ?? 1}", "${input.b ?? true}"]}
        )
        assert [(path.text, path.default) for path in template.paths] == [
            ("input.b", ex.MISSING),
            ("input.a", ex.MISSING),
            ("input.b", 1),
            ("input.b", True),
        ]
        assert template.paths[3].default is True

    @pytest.mark.parametrize(
        ("template", "text"),
        [
            ("${input.a}", "input.a"),
            ("${ input['a'] ?? 1 }", "input.a"),
            (" ${input.a}", None),
            ("$${input.a}", None),
            ("a", None),
            (["${input.a}"], None),
        ],
    )
    def test_single_is_a_string_of_one_path(self, template, text):
        single = ex.compile_template(template).single
        assert (single and single.text) == text

    def test_a_missing_path_is_named(self):
        template = ex.compile_template({"x": "${input.n} ${input.no.such}"})
        with pytest.raises(ex.MissingPathError, match=r"input\.no\.such") as caught:
            template.resolve(SCOPE)
        assert caught.value.path.segments == ("no", "such")

    def test_the_template_keeps_a_copy_and_shares_the_scopes_values(self):
        source = {"constant": [1], "live": "${input.list}"}
        template = ex.compile_template(source)
        source["constant"].append(2)
        assert template.resolve(SCOPE) == {"constant": [1], "live": ["a", {"b": 1}]}
        assert template.resolve(SCOPE)["live"] is INPUT["list"]

    def test_errors_of_a_scope_pass_through(self):
        class Refusing:
            def lookup(self, path):
                raise PermissionError(path.text)

        with pytest.raises(PermissionError, match=r"input\.a"):
            ex.compile_template("${input.a ?? 1}").resolve(Refusing())

    @pytest.mark.parametrize(
        "error",
        [
            ex.ExpressionError("message", 3, "text"),
            ex.MissingPathError(ex.parse_path("a.b")),
            ex.ResolvedTooLargeError(9),
        ],
    )
    def test_errors_survive_pickling(self, error):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


class TestSizes:
    @given(value=json_values)
    @settings(max_examples=150, deadline=None, derandomize=True)
    def test_size_is_that_of_the_compact_text(self, value):
        size = len(json_text(value).encode())
        assert ex.json_size(value) == size
        assert ex.json_size(value, size) == size
        assert ex.json_size(value, size - 1) > size - 1

    @given(value=json_values)
    @settings(max_examples=150, deadline=None, derandomize=True)
    def test_interpolation_writes_json(self, value):
        written = value if isinstance(value, str) else json_text(value)
        assert ex.compile_template("<${v}>").resolve(ex.RootsScope({"v": value})) == f"<{written}>"

    @given(value=json_values, constant=json_values)
    @settings(max_examples=150, deadline=None, derandomize=True)
    def test_the_limit_is_exact(self, value, constant):
        constant = json.loads(json_text(constant).replace("${", "$"))
        template = ex.compile_template({"é": ["${v}", "<${v}> ${v}", constant, {}], "c": constant})
        scope = ex.RootsScope({"v": value})
        result = template.resolve(scope)
        size = len(json_text(result).encode())
        assert template.resolve(scope, size) == result
        with pytest.raises(ex.ResolvedTooLargeError) as caught:
            template.resolve(scope, size - 1)
        assert caught.value.limit_bytes == size - 1

    @pytest.mark.parametrize("value", [{1, 2}, object(), [b"x"]])
    def test_size_of_what_is_no_json(self, value):
        with pytest.raises(TypeError, match="is no JSON value"):
            ex.json_size(value)
