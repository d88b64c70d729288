from __future__ import annotations

import hashlib

import pytest
import yaml

from gateway.routing.manifest import SIZE_LIMIT_BYTES, DeclaredRoute, parse_manifest
from gateway.routing.manifest_values import LONGEST_DURATION_MS, ManifestError, duration_ms
from gateway.routing.state import EngineOptions
from registry_client.models import ModelRef

REGISTRIES = {"local": {"type": "directory", "path": "./models"}}


def manifest(**changed: object) -> str:
    """A good manifest of one route, with some of the route's fields changed."""
    variants = {
        "stable": {"model": "local/digits@champion", "weight": 90},
        "canary": {"model": "local/digits@challenger", "weight": 10},
    }
    declared = {"registries": REGISTRIES, "routes": {"digits": {"variants": variants, **changed}}}
    return yaml.safe_dump(declared, sort_keys=False)


def variants(**declared: object) -> str:
    return manifest(variants=declared)


def route(text: str) -> DeclaredRoute:
    return parse_manifest(text).routes["digits"]


def weights(text: str) -> dict[str, int]:
    return {name: variant.weight_bp for name, variant in route(text).variants.items()}


def model(weight: object = None, revision: str = "1") -> dict[str, object]:
    declared: dict[str, object] = {"model": f"local/digits@{revision}"}
    return declared if weight is None else {**declared, "weight": weight}


def refusal(text: str) -> ManifestError:
    with pytest.raises(ManifestError) as refused:
        parse_manifest(text)
    assert str(refused.value) == (
        f"{refused.value.path}: {refused.value.problem}" if refused.value.path else refused.value.problem
    )
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1000
    return refused.value


class TestGood:
    def test_what_is_left_out_has_its_default(self) -> None:
        text = manifest()
        read = parse_manifest(text)
        declared = read.routes["digits"]
        assert declared.fallback == "stable"
        assert declared.sticky == "header:turnout-key"
        assert declared.salt == "digits"
        assert declared.timeout_ms == 30_000
        assert declared.explicit_versions == "any"
        assert declared.overrides is False
        assert declared.engine == EngineOptions()
        assert weights(text) == {"stable": 9000, "canary": 1000}
        assert read.registries["local"].type == "directory"
        assert read.registries["local"].options == {"path": "./models"}
        assert read.sha256 == hashlib.sha256(text.encode()).hexdigest()
        assert list(read.references()) == [
            ("digits", "stable", ModelRef("local", "digits", "champion")),
            ("digits", "canary", ModelRef("local", "digits", "challenger")),
        ]

    def test_what_is_written_is_taken(self) -> None:
        declared = route(
            manifest(
                fallback="canary",
                sticky="parameter:user_id",
                salt="",
                timeout="1.5s",
                explicit_versions="known",
                overrides=True,
                follow="pin",
                engine={"threads": 0, "max_batch_size": 1, "batching": False, "providers": ["A", "B"]},
            )
        )
        assert (declared.fallback, declared.sticky, declared.salt) == ("canary", "parameter:user_id", "")
        assert (declared.timeout_ms, declared.explicit_versions, declared.overrides) == (1500, "known", True)
        assert declared.engine == EngineOptions(
            threads=0, max_batch_size=1, batching=False, providers=("A", "B")
        )

    @pytest.mark.parametrize("word", ["off", "'off'", "no"])
    def test_off_is_a_word_though_yaml_takes_it_for_false(self, word: str) -> None:
        text = f"""
registries: {{local: {{type: directory, path: m}}}}
routes:
  digits:
    variants: {{stable: {{model: local/digits@champion}}}}
    explicit_versions: {word}
    engine: {{concurrency: {word}}}
"""
        assert route(text).explicit_versions == route(text).engine.concurrency == "off"

    @pytest.mark.parametrize(
        ("word", "read"), [("on", "on"), ("'on'", "on"), ("off", "off"), ("'off'", "off"), ("auto", "auto")]
    )
    def test_on_is_a_word_though_yaml_takes_it_for_true(self, word: str, read: str) -> None:
        text = f"""
registries: {{local: {{type: directory, path: m}}}}
routes:
  digits:
    variants: {{stable: {{model: local/digits@champion}}}}
    engine: {{share_weights: {word}}}
"""
        assert route(text).engine.share_weights == read

    @pytest.mark.parametrize(("written", "read"), [("auto", "auto"), (7, 7)])
    def test_a_limit_on_what_is_in_flight(self, written: object, read: object) -> None:
        assert route(manifest(engine={"concurrency": written})).engine.concurrency == read

    @pytest.mark.parametrize(
        ("declared", "expected"),
        [
            ({"stable": model()}, {"stable": 10_000}),
            ({"stable": model(), "canary": model(10)}, {"stable": 9000, "canary": 1000}),
            ({"stable": model(), "canary": model()}, {"stable": 10_000, "canary": 0}),
            ({"stable": model(100), "canary": model()}, {"stable": 10_000, "canary": 0}),
            ({"stable": model(0), "canary": model(0)}, {"stable": 0, "canary": 0}),
            ({"stable": model(99.99), "canary": model(0.01)}, {"stable": 9999, "canary": 1}),
            ({"stable": model(), "canary": model(100)}, {"stable": 0, "canary": 10_000}),
            # 33.3 * 100 is 3329.9999…: it is 3330 basis points.
            ({"a": model(33.3), "b": model(33.3), "c": model(33.4)}, {"a": 3330, "b": 3330, "c": 3340}),
        ],
    )
    def test_weights(self, declared: dict[str, object], expected: dict[str, int]) -> None:
        assert weights(variants(**declared)) == expected

    def test_no_routes_must_be_written(self) -> None:
        assert parse_manifest("routes: {}").routes == {}
        assert parse_manifest("{}").routes == {}

    def test_registries_keep_the_types_of_their_options(self) -> None:
        options = {"url": "http://h:5000/a@b", "n": 3, "f": 0.5, "on": True, "no": None, "l": ["x", {"k": 1}]}
        text = yaml.safe_dump({"registries": {"r": {"type": "mlflow", **options}}})
        assert parse_manifest(text).registries["r"].options == options


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("500ms", 500),
        ("30s", 30_000),
        ("1.5s", 1500),
        ("10m", 600_000),
        ("1h", 3_600_000),
        ("0.1ms", 1),
        ("720h", LONGEST_DURATION_MS),
    ],
)
def test_durations(text: str, milliseconds: int) -> None:
    assert duration_ms("timeout", text) == milliseconds


@pytest.mark.parametrize(
    "text",
    ["", "30", "s", "-1s", "0s", "0.0m", "1d", "1 s", "1s ", "1.s", ".5s", "1e3s", "1s\n", "٣s", "721h", "9" * 400],
)  # fmt: skip
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ManifestError) as refused:
        duration_ms("routes.digits.timeout", text)
    assert refused.value.path == "routes.digits.timeout"
    assert len(str(refused.value)) < 200


CANARY = "routes.digits.variants.canary"


@pytest.mark.parametrize(
    ("weight", "path"),
    [
        (-1, f"{CANARY}.weight"),
        ("ten", f"{CANARY}.weight"),
        ("10", f"{CANARY}.weight"),
        (101, f"{CANARY}.weight"),
        (100.01, f"{CANARY}.weight"),
        (0.001, f"{CANARY}.weight"),
        (10.005, f"{CANARY}.weight"),
        (float("nan"), f"{CANARY}.weight"),
        (float("inf"), f"{CANARY}.weight"),
        (-float("inf"), f"{CANARY}.weight"),
        (True, f"{CANARY}.weight"),
        ([10], f"{CANARY}.weight"),
        (10**400, f"{CANARY}.weight"),
        # It is a weight, but 90 + 11 is no whole.
        (11, "routes.digits.variants"),
        (9.99, "routes.digits.variants"),
    ],
)
def test_what_is_no_weight(weight: object, path: str) -> None:
    assert refusal(variants(stable=model(90), canary=model(weight))).path == path


def test_more_than_the_whole_beside_a_fallback_without_a_weight() -> None:
    error = refusal(variants(stable=model(), a=model(60), b=model(60)))
    assert (error.path, error.problem) == (
        "routes.digits.variants",
        "the weights add up to 120 %, not to 100 % (or all 0)",
    )


@pytest.mark.parametrize(
    ("changed", "path"),
    [
        ({"shadow": 1}, "routes.digits.shadow"),
        ({"variants": {}}, "routes.digits.variants"),
        ({"variants": []}, "routes.digits.variants"),
        ({"variants": {"": model()}}, "routes.digits.variants"),
        ({"variants": {"a b": model()}}, "routes.digits.variants"),
        ({"variants": {"-a": model()}}, "routes.digits.variants"),
        ({"variants": {"a\n": model()}}, "routes.digits.variants"),
        ({"variants": {"a" * 129: model()}}, "routes.digits.variants"),
        ({"variants": {1: model()}}, "routes.digits.variants"),
        ({"variants": {True: model()}}, "routes.digits.variants"),
        # Metrics call explicit versions so.
        ({"variants": {"pinned": model()}}, "routes.digits.variants.pinned"),
        ({"variants": {"a": {}}}, "routes.digits.variants.a"),
        ({"variants": {"a": None}}, "routes.digits.variants.a"),
        ({"variants": {"a": {**model(), "wieght": 3}}}, "routes.digits.variants.a.wieght"),
        ({"variants": {"a": {"model": 5}}}, "routes.digits.variants.a.model"),
        ({"variants": {"a": {"model": "digits@1"}}}, "routes.digits.variants.a.model"),
        ({"variants": {"a": {"model": "local/digits"}}}, "routes.digits.variants.a.model"),
        ({"variants": {"a": {"model": "local/../x@1"}}}, "routes.digits.variants.a.model"),
        ({"variants": {"a": {"model": "other/digits@1"}}}, "routes.digits.variants.a.model"),
        ({"fallback": "nobody"}, "routes.digits.fallback"),
        ({"fallback": ""}, "routes.digits.fallback"),
        ({"sticky": "cookie:x"}, "routes.digits.sticky"),
        ({"sticky": "header:"}, "routes.digits.sticky"),
        ({"sticky": "header:a b"}, "routes.digits.sticky"),
        ({"sticky": None}, "routes.digits.sticky"),
        ({"salt": 5}, "routes.digits.salt"),
        ({"overrides": "yes please"}, "routes.digits.overrides"),
        ({"explicit_versions": "some"}, "routes.digits.explicit_versions"),
        ({"follow": "moon"}, "routes.digits.follow"),
        ({"timeout": 30}, "routes.digits.timeout"),
        ({"timeout": "soon"}, "routes.digits.timeout"),
        ({"engine": []}, "routes.digits.engine"),
        ({"engine": {"gpu": 1}}, "routes.digits.engine.gpu"),
        ({"engine": {"threads": -1}}, "routes.digits.engine.threads"),
        ({"engine": {"threads": 257}}, "routes.digits.engine.threads"),
        ({"engine": {"threads": 1.5}}, "routes.digits.engine.threads"),
        ({"engine": {"max_batch_size": 0}}, "routes.digits.engine.max_batch_size"),
        ({"engine": {"max_batch_size": 4097}}, "routes.digits.engine.max_batch_size"),
        ({"engine": {"max_queue": 0}}, "routes.digits.engine.max_queue"),
        ({"engine": {"concurrency": 0}}, "routes.digits.engine.concurrency"),
        ({"engine": {"concurrency": 1_000_001}}, "routes.digits.engine.concurrency"),
        ({"engine": {"concurrency": "many"}}, "routes.digits.engine.concurrency"),
        ({"engine": {"concurrency": True}}, "routes.digits.engine.concurrency"),
        ({"explicit_versions": True}, "routes.digits.explicit_versions"),
        ({"engine": {"share_weights": "maybe"}}, "routes.digits.engine.share_weights"),
        ({"engine": {"share_weights": 1}}, "routes.digits.engine.share_weights"),
        ({"engine": {"batching": "maybe"}}, "routes.digits.engine.batching"),
        ({"engine": {"providers": []}}, "routes.digits.engine.providers"),
        ({"engine": {"providers": ["A", 1]}}, "routes.digits.engine.providers[1]"),
        ({"engine": {"graph_optimization": "most"}}, "routes.digits.engine.graph_optimization"),
    ],
)
def test_a_route_that_is_refused_names_its_field(changed: dict[str, object], path: str) -> None:
    assert refusal(manifest(**changed)).path == path


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"engine": {"share_weights": "maybe"}}, "'maybe': write auto, on, off"),
        ({"engine": {"concurrency": "many"}}, "'many': write auto, off, a number"),
        ({"engine": {"concurrency": 0}}, "0 is not in 1..1000000 (or auto, off)"),
        ({"engine": {"graph_optimization": "most"}}, "'most': write disabled, basic, extended, all"),
        ({"explicit_versions": "some"}, "'some': write any, known, off"),
        ({"follow": "moon"}, "'moon': write pin"),
    ],
)
def test_a_word_that_is_refused_is_answered_with_those_that_are_not(
    changed: dict[str, object], says: str
) -> None:
    assert says in str(refusal(manifest(**changed)))


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("route: {}", "route"),
        ("routes: []", "routes"),
        ("routes: {a b: {}}", "routes"),
        ("routes: {1: {}}", "routes"),
        ("routes: {yes: {}}", "routes"),
        ("routes: {a: }", "routes.a"),
        ("routes: {a: {}}", "routes.a"),
        ("registries: {a/b: {type: x}}", "registries"),
        ("registries: {a: directory}", "registries.a"),
        ("registries: {a: {}}", "registries.a.type"),
        ("registries: {a: {type: 5}}", "registries.a.type"),
        ("registries: {a: {type: m, url: 'http://u:p@host/x'}}", "registries.a.url"),
        ("registries: {a: {type: m, url: 'https://token@host'}}", "registries.a.url"),
        ("registries: {a: {type: m, b: {url: 's3://k:s@b'}}}", "registries.a.b.url"),
        ("registries: {a: {type: m, b: [x, 's3://k:s@b']}}", "registries.a.b[1]"),
        # JSON has none of these: the state would read back as another one.
        ("registries: {a: {type: m, since: 2001-01-01}}", "registries.a.since"),
        ("registries: {a: {type: m, x: .nan}}", "registries.a.x"),
        ("registries: {a: {type: m, x: [-.inf]}}", "registries.a.x[0]"),
        ("registries: {a: {type: m, x: {1: 2}}}", "registries.a.x"),
        ("registries: {a: {type: m, x: !!binary aGk=}}", "registries.a.x"),
        ("registries: {a: {type: m, x: !!set {y}}}", "registries.a.x"),
        (f"registries: {{a: {{type: m, x: {1 << 63}}}}}", "registries.a.x"),
        ("registries: {a: {type: m, x: [" + "9" * 5000 + "]}}", ""),
    ],
)
def test_a_manifest_that_is_refused_names_its_field(text: str, path: str) -> None:
    error = refusal(text)
    assert error.path == path
    assert "u:p" not in str(error) and "token" not in str(error) and "k:s" not in str(error)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the manifest is empty"),
        ("# nothing\n", "the manifest is empty"),
        ("~", "the manifest is empty"),
        ("[]", "got `array`"),
        ("- a", "got `array`"),
        ("just text", "got `str`"),
        ("0", "got `int`"),
        ("false", "got `bool`"),
        ("routes: {", "no YAML"),
        ("routes:\0", "no YAML"),
        ("routes: \ud800", "no UTF-8"),
        ("--- {}\n--- {}", "no YAML"),
        ("routes: !!python/object:os.system {}", "no YAML"),
        # PyYAML lets through whatever the constructors of these values throw.
        ("routes: 2001-13-01", "no YAML"),
        ("routes: !!bool x", "no YAML"),
        ("routes: !!timestamp x", "no YAML"),
        ("routes: " + "9" * 5000, "no YAML"),
        ("routes: {}\nroutes: {}", "line 2: the key 'routes' is written twice"),
        ("routes:\n  a: {sticky: none,\n    sticky: none}", "line 3: the key 'sticky' is written twice"),
        ("? [a]\n: b", "line 1: a key must be plain text"),
        ("routes: &a {}", "anchors"),
        ("a: &a [x]\nroutes: *a", "anchors"),
        ("a: &a {b: c}\nroutes: {<<: *a}", "anchors"),
        ("[" * 100_000, ""),
        ("{a: " * 20_000, ""),
        ("# " + "x" * SIZE_LIMIT_BYTES, "larger than"),
        ("routes: " + "x" * 5_000_000, "larger than"),
        ("# " + "ü" * (SIZE_LIMIT_BYTES // 2), "larger than"),
    ],
)
def test_what_is_no_manifest_at_all(text: str, says: str) -> None:
    error = refusal(text)
    assert error.path == ""
    assert says in error.problem


def test_a_manifest_of_the_largest_size_is_read() -> None:
    text = "routes: {}\n# " + "x" * (SIZE_LIMIT_BYTES - 13)
    assert len(text) == SIZE_LIMIT_BYTES
    assert parse_manifest(text).routes == {}
