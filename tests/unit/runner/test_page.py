from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc

from ensemble_core.library.records import Accuracy, Metrics, Score
from ensemble_core.library.timeline import Span
from ensemble_core.runner import snippets
from ensemble_core.runner.facts import Endpoint, MatrixFacts, RunFacts
from ensemble_core.runner.figures.charts import Label, linear_ticks, place, scale_of
from ensemble_core.runner.figures.markup import VOID, el
from ensemble_core.runner.figures.timeline import clock_of
from ensemble_core.runner.page import render_page

Make = Callable[..., RunFacts]
EVIL = "<script>alert('x')</script>&\"'"
NAN = float("nan")


class Page(HTMLParser):
    """Parses a page and checks on the way that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.svg: dict[str, str | None] | None = None
        self.elements: list[tuple[str, dict[str, str | None], dict[str, str | None] | None]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        self.svg = dict(attrs) if tag == "svg" else self.svg
        self.elements.append((tag, dict(attrs), self.svg))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.svg = None if tag == "svg" else self.svg

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes, *_ in self.elements if name == tag]


def has_class(attributes: dict[str, str | None], class_: str) -> bool:
    return class_ in (attributes.get("class") or "").split()


def test_every_model_budget_and_matrix_is_on_the_page(make_facts: Make) -> None:
    facts = make_facts()
    text = render_page(facts)
    page = Page(text)
    for model in facts.models:
        assert model.id in page.texts
    for ensemble in facts.ensembles:
        assert ensemble.name in page.text
        assert f"Members of “{ensemble.name}”" in page.text
    bars = [attributes for attributes in page.named("rect") if has_class(attributes, "amount")]
    assert len(bars) == len(facts.matrices)
    dots = [tag for tag, _, svg in page.elements if tag == "circle" and svg]
    assert len(dots) >= len(facts.models)
    assert page.text.count("★ best") == 1
    headings = ["What was achieved", "The library", "The front", "How the members were picked", "The trials"]
    headings += ["The allocation", "How to ask the endpoint", "Details"]
    assert [text for text in page.texts if text in headings] == headings


def test_a_matrix_that_is_routed_otherwise_is_told_apart(make_facts: Make) -> None:
    first = make_facts().matrices[0]
    weighted = replace(first, routing="weights", throughput=2 * first.throughput)
    page = render_page(replace(make_facts(), matrices=(first, weighted, weighted, first)))
    assert re.findall("routed by shares|pulled|the same again", page) == [
        "routed by shares",
        "the same again",
        "pulled",
    ]


def test_output_is_deterministic(make_facts: Make) -> None:
    assert render_page(make_facts()) == render_page(make_facts())


def test_nothing_is_loaded(make_facts: Make) -> None:
    text = render_page(make_facts())
    page = Page(text)
    assert not {"link", "img", "iframe", "object", "image", "use"} & {tag for tag, *_ in page.elements}
    assert not any({"src", "href", "xlink:href"} & attributes.keys() for _, attributes, *_ in page.elements)
    assert re.findall(r"url\(([^)]*)\)", text) == ["#hatch"]
    assert "@import" not in text
    assert re.findall(r"https?://\S*", text) == ["http://127.0.0.1:8000/v2/models/digits/infer"]


def test_coordinates_are_inside_the_view_box(make_facts: Make) -> None:
    page = Page(render_page(make_facts(models=500, slots=32)))
    drawn = [(tag, attributes, svg) for tag, attributes, svg in page.elements if svg and tag != "svg"]
    assert len(drawn) > 3000
    for tag, attributes, svg in drawn:
        width, height = view(svg)
        for names, most in ((("x", "x1", "x2", "cx"), width), (("y", "y1", "y2", "cy"), height)):
            for value in (attributes[name] or "" for name in names if name in attributes):
                inside = 0 <= float(value.removesuffix("%")) <= (100.01 if value.endswith("%") else most)
                assert inside, (tag, attributes)
        for x, y in re.findall(r"([-\d.]+),([-\d.]+)", attributes.get("points") or ""):
            assert 0 <= float(x) <= width
            assert 0 <= float(y) <= height


def view(svg: dict[str, str | None]) -> tuple[float, float]:
    """Width and height of the view box, or of the element, whose width may be that of its column."""
    if box := svg.get("viewbox"):
        _, _, width, height = box.split()
        return float(width), float(height)
    return 100 if svg["width"] == "100%" else float(svg["width"] or 0), float(svg["height"] or 0)


def test_spans_end_inside_the_timeline(make_facts: Make) -> None:
    page = Page(render_page(make_facts()))
    spans = [a for a in page.named("rect") if has_class(a, "span") and (a.get("x") or "").endswith("%")]
    assert len(spans) == 64
    assert all(float(str(a["x"])[:-1]) + float(str(a["width"])[:-1]) <= 100.01 for a in spans)


def test_names_settings_and_documents_are_escaped(make_facts: Make) -> None:
    facts = make_facts()
    first = replace(facts.models[1], id=EVIL, hyperparameters={EVIL: EVIL}, family=EVIL)
    evil = replace(
        facts,
        title=EVIL,
        dataset=EVIL,
        machine=EVIL,
        versions={EVIL: EVIL},
        models=(first, *facts.models),
        ensembles=(
            replace(facts.ensembles[0], name=EVIL, members=(EVIL,), weights=(1.0,)),
            replace(facts.ensembles[1], heldout=None, validation=None, members=(), weights=(), reason=EVIL),
        ),
        paths=(replace(facts.paths[0], budget=EVIL, steps=((EVIL, 0.1, 0.1),)),),
        spans=(Span(0, 0, 1, 1.0, 2.0, EVIL),),
        matrices=(MatrixFacts((EVIL,), (EVIL,), ((8,),), 10.0, 0.1),),
        best_matrix=0,
        endpoint=replace(facts.endpoint, model=EVIL, classes=(EVIL, "b")),
        documents=EVIL,
    )
    text = render_page(evil)
    assert len(Page(text).named("script")) == 1
    assert EVIL not in text
    assert text.count("&lt;script&gt;") > 20


def test_a_budget_without_an_ensemble_says_why(make_facts: Make) -> None:
    facts = make_facts()
    reason = "the cheapest model digits-0001 costs 0.02 s"
    without = replace(
        facts.ensembles[0],
        members=(),
        weights=(),
        validation=None,
        heldout=None,
        cost=None,
        throughput=None,
        reason=reason,
    )
    facts = replace(facts, ensembles=(without, *facts.ensembles[1:]), paths=facts.paths[3:])
    assert Page(render_page(facts)).texts.count(reason) == 2


def test_no_budget_has_an_ensemble(make_facts: Make) -> None:
    text = Page(render_page(replace(make_facts(), ensembles=(), paths=(), front=(), matrices=()))).text
    assert "No budget has an ensemble" in text
    assert "No matrix was benchmarked." in text


@pytest.mark.parametrize("cost", [None, 0.0, NAN, float("inf")])
def test_models_without_a_cost_stand_beside_the_axis(make_facts: Make, cost: float | None) -> None:
    facts = make_facts()
    facts = replace(facts, models=(replace(facts.models[0], cost=cost), *facts.models[1:]))
    text = render_page(facts)
    assert "no cost" in Page(text).texts
    assert "cost not measured" in text
    assert not re.search(r"\b(nan|inf)\b", Page(text).text, re.IGNORECASE)


def test_one_model_alone_and_no_spans(make_facts: Make) -> None:
    facts = make_facts(models=1)
    bare = replace(facts, models=(replace(facts.models[0], cost=None),), spans=(), occupancy=None, front=())
    text = Page(render_page(bare)).text
    assert "1 model" in text
    assert "No trial ran" in text
    Page(render_page(replace(bare, models=())))


def test_what_is_not_a_number_is_a_dash(make_facts: Make) -> None:
    facts = make_facts()
    broken = replace(
        facts,
        occupancy=NAN,
        front=((NAN, NAN, 1), *facts.front),
        matrices=(replace(facts.matrices[0], throughput=NAN, spread=NAN), *facts.matrices[1:]),
        ensembles=(replace(facts.ensembles[0], cost=NAN, throughput=NAN), *facts.ensembles[1:]),
        endpoint=replace(facts.endpoint, largest_difference=NAN, problem="they are no finite numbers"),
    )
    text = render_page(broken)
    assert not re.search(r"\b(nan|inf)\b", Page(text).text, re.IGNORECASE)
    assert "✗ –" in text


def test_an_ensemble_that_loses_is_said_to_lose(make_facts: Make) -> None:
    facts = make_facts()
    assert "beats the best single model on held-out data: 4 errors fewer on 450 samples" in render_page(facts)
    best = replace(facts.best_single, heldout=Metrics(cross_entropy=0.01, error=0.002, macro_f1=1, top5_error=0))
    text = Page(render_page(replace(facts, best_single=best))).text
    assert "does not beat the best single model on held-out data: 6 errors more on 450 samples" in text
    assert text.count("▼ worse") == 3


def test_an_endpoint_that_differs_is_marked(make_facts: Make) -> None:
    facts = make_facts()
    assert "✓" in render_page(facts)
    differs = replace(facts.endpoint, largest_difference=0.3, problem="they differ too much")
    wrong = render_page(replace(facts, endpoint=differs))
    assert "✗ 0.300" in wrong
    assert ": they differ too much" in wrong
    assert "✓" not in wrong


def test_what_half_precision_does_to_the_endpoint_is_told(make_facts: Make) -> None:
    facts = make_facts()
    float32, half = Score(cross_entropy=0.5, error=0.25), Score(cross_entropy=0.501, error=0.25)
    accuracy = Accuracy(samples=450, float32=float32, half=half, changed=0.002)
    text = Page(render_page(replace(facts, endpoint=replace(facts.endpoint, accuracy=accuracy)))).text
    assert "in half precision cross-entropy 0.5010 (0.5000 in float32)" in text
    assert "another class for 0.20% of 450 held-out samples" in text


def test_a_pause_between_attempts_is_left_out() -> None:
    spans = [Span(0, 0, 1, 0.0, 50.0, "epochs 1-1"), Span(0, 1, 1, 80_000.0, 80_050.0, "epochs 1-1")]
    clock = clock_of(spans)
    assert clock.runs == ((0.0, 50.0), (80_000.0, 80_050.0))
    assert clock.seconds == pytest.approx(100 + clock.cut)
    assert [seconds for _, seconds in clock.pauses()] == [79_950.0]
    assert clock.percent(80_050.0) == pytest.approx(100)


def test_spans_without_length_have_an_axis() -> None:
    assert clock_of([Span(0, 0, 1, 5.0, 5.0, "export")]).seconds == 1.0


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.013, 0.0131), (-3, 8), (1e-7, 5e-7), (0, 12345)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = linear_ticks(low, high)
    assert 3 <= len(ticks) <= 8
    assert all(low - 1e-9 * (high - low) <= tick <= high + 1e-9 * (high - low) for tick in ticks)


@pytest.mark.parametrize("values", [[], [0.5], [0.01, 3.0], [1e-6, 1e6], [0.3, 0.31]])
def test_logarithmic_scales_hold_their_values(values: list[float]) -> None:
    scale = scale_of(values, 0, 100, log=True)
    assert all(0 < scale(value) < 100 for value in values)
    assert len(scale.ticks()) >= 2
    assert all(scale.low <= tick <= scale.high for tick in scale.ticks())


def test_labels_do_not_overlap() -> None:
    labels = [Label(50 + index % 5, 50 + index % 3, f"#{index}") for index in range(40)]
    placed = re.findall(r'x="([\d.]+)" y="([\d.]+)"', place(labels, (0, 0, 200, 200)))
    assert 2 <= len(placed) < 40
    points = [(float(x), float(y)) for x, y in placed]
    for index, (x, y) in enumerate(points):
        assert all(abs(x - a) >= 20 or abs(y - b) >= 16.9 for a, b in points[:index])


def test_markup_escapes_text_and_attributes_and_refuses_nan() -> None:
    assert el("p", EVIL, title='"') == (
        '<p title="&quot;">&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&amp;&quot;&#x27;</p>'
    )
    assert el("p", el("br"), hidden=True, id=None) == "<p hidden><br></p>"
    with pytest.raises(ValueError, match="not a coordinate"):
        el("circle", cx=NAN)


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint("it's", "127.0.0.1:8000", "127.0.0.1:8001", "FP32", (2, 3), ("a", "b"), 0.0, 1)


def test_curl_sends_a_whole_sample(endpoint: Endpoint) -> None:
    text = snippets.curl(endpoint)
    body = text.split("<<JSON\n")[1].removesuffix("\nJSON").replace("$ZEROS", ",".join("0" * 6))
    assert json.loads(body) == {"inputs": [{"name": "INPUT", "shape": [1, 2, 3], "datatype": "FP32", "data": [0] * 6}]}
    assert "head -n 6 " in text
    assert "http://127.0.0.1:8000/v2/models/it%27s/infer <<JSON" in text


def test_predict_is_quoted(endpoint: Endpoint) -> None:
    assert """--url 127.0.0.1:8001 --model 'it'"'"'s' --input""" in snippets.predict(endpoint)


def test_the_python_snippet_runs(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, list[int], str]] = []

    class Answer:
        def as_numpy(self, name: str) -> Any:
            assert name == "PROBABILITIES"
            return np.full((1, 2), 0.5, np.float32)

    class Client:
        def __init__(self, url: str) -> None:
            assert url == "127.0.0.1:8001"

        def infer(self, model: str, inputs: list[Any]) -> Answer:
            (tensor,) = inputs
            asked.append((model, tensor.name(), tensor.shape(), tensor.datatype()))
            return Answer()

    monkeypatch.setattr(tritonclient.grpc, "InferenceServerClient", Client)
    exec(compile(snippets.python(endpoint), "snippet", "exec"), {})
    assert asked == [("it's", "INPUT", [1, 2, 3], "FP32")]
