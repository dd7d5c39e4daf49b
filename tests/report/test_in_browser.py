"""The report in a real browser: what people see of it, in two widths, light and dark."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steps.evaluation.asking import Answer
from steps.evaluation.cost import Timing
from steps.evaluation.fidelity import TokenFidelity
from steps.evaluation.gates import Gate, judge
from steps.evaluation.metrics import flatten, measure
from steps.evaluation.predictions import score
from steps.evaluation.tasks import Example
from steps.report.page import write_report
from steps.report.plots import draw
from steps.report.results import Results
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

BROWSER = ROOT / "tests" / "browser.py"
DESKTOP, PHONE = "1280x800", "390x844"

EVIL = "</title></style><script>window.owned = 1</script><img src=http://127.0.0.1:9/x onerror='window.owned = 1'>"
TEXTS = (
    "What is the capital of Spain?",
    EVIL,
    "عاصمة مصر هي القاهرة.",
    "日本の首都は東京です。",
    "x" * 900,
    "long " * 900,
)

LOOK = """(() => {
  const page = document.documentElement, verdict = document.querySelector('#verdict strong').getBoundingClientRect();
  const channels = colour => (colour.match(/[\\d.]+/g) || []).map(Number);
  const seen = colour => channels(colour).length > 2 && (channels(colour)[3] ?? 1) > 0;
  const light = colour => channels(colour).slice(0, 3).map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const ground = e => { while (e && !seen(getComputedStyle(e).backgroundColor)) e = e.parentElement;
    return getComputedStyle(e || document.body).backgroundColor; };
  const words = [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() &&
    [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()));
  const marks = [...document.querySelectorAll('.who')];
  return {
    title: document.title, owned: 'owned' in window, verdict: document.querySelector('#verdict strong').innerText,
    headSeen: verdict.top >= 0 && verdict.bottom <= innerHeight, tooWide: page.scrollWidth - page.clientWidth,
    dark: light(getComputedStyle(document.body).backgroundColor) < 0.1, words: words.length,
    faint: words.map(e => [contrast(getComputedStyle(e)[e.closest('svg') ? 'fill' : 'color'], ground(e)), e])
      .filter(([ratio]) => !(ratio >= 4.5)).map(([ratio, e]) => ratio.toFixed(2) + ' ' + e.textContent.slice(0, 60)),
    faintMarks: marks.map(e => contrast(getComputedStyle(e, '::before').backgroundColor, ground(e)))
      .filter(ratio => !(ratio >= 3)),
    mute: [...document.querySelectorAll('svg')].filter(e => e.getAttribute('role') != 'img' || !e.ariaLabel).length,
    twice: [...document.querySelectorAll('[id]')].map(e => e.id).filter((id, i, all) => all.indexOf(id) != i),
  };
})()"""


@pytest.fixture(scope="module", autouse=True)
def browser() -> None:
    """Fail where the browser is not installed, or lacks a library of the system; skip where NO_BROWSER=1 says so."""
    if os.environ.get("NO_BROWSER") == "1":
        pytest.skip("NO_BROWSER=1")
    done = subprocess.run(
        [sys.executable, "-c", "import PyQt6.QtWebEngineWidgets"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.fail(f"no PyQt6-WebEngine of requirements-dev.txt: {done.stderr.splitlines()[-1]}; or set NO_BROWSER=1")


def look(page: Path, theme: str, script: str = LOOK) -> dict[str, Any]:
    """Return what the browser finds of *page* in its two widths."""
    command = [sys.executable, str(BROWSER), str(page), script, theme, DESKTOP, PHONE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a report that failed, on four candidates, one of them with a long name, and texts of every kind."""
    names = ("pipeline", "onnx", "onnx_int4_block_128_of_a_checkpoint_with_a_long_name", "<b>onnx</b>")
    examples = [
        Example(f"q{n}", [{"role": "system", "content": text}, {"role": "user", "content": text}], text)
        for n, text in enumerate(TEXTS * 3)
    ]
    answers = {
        name: [
            Answer(e.id, e.reference[: -place or None] if n % 2 else e.reference, 8, 0.1 / (place + 1))
            for n, e in enumerate(examples)
        ]
        for place, name in enumerate(names)
    }
    answers["onnx"][0] = Answer("q0", "", None, 0.1, EVIL)
    predictions = score(examples, answers)
    rng = np.random.default_rng(0)
    nll = rng.exponential(2, 2_000)
    tokens = TokenFidelity(np.arange(2_000) % 18, nll, nll * 1.1, rng.lognormal(-6, 2, 2_000), nll > 0.1)
    timings = [Timing(name, length, n, 16, 0.1, 0.2) for name in names for length in (32, 128) for n in (1, 4)]
    metrics = measure(predictions, {}, "pipeline", 0)
    metrics["onnx"] |= {"fidelity.kl_mean": float("nan"), "contract.stop": 1.0}
    gates = {
        "accuracy": Gate("onnx.task.accuracy", min=0.9),
        "kl": Gate("onnx.fidelity.kl_mean", max=0.1),
        "difference": Gate("onnx.task.difference", min=-0.6, use="interval"),
        "stop": Gate("onnx.contract.stop", min=1),
    }
    path = tmp_path_factory.mktemp("report") / "report.html"
    results = Results(
        title=EVIL,
        predictions=predictions,
        metrics=metrics,
        verdicts=judge(flatten(metrics), gates),
        fidelity=dict.fromkeys(names[1:], tokens),
        timings=timings,
        reference="pipeline",
        method={"Task": EVIL},
        provenance={"Code": "f39ac1d28e925b323eae81227eaba4464caced4e" * 9},
    )
    write_report(path, results, draw(results))
    return path


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_report_can_be_read_on_a_desk_and_on_a_phone(report: Path, theme: str) -> None:
    seen = look(report, theme)

    assert (seen["requests"], seen["console"]) == ([], [])
    for found in seen["found"]:
        assert found["verdict"] == "Failed"
        assert found["headSeen"], "the verdict must stand where one looks first"
        assert found["tooWide"] == 0, "only tables may scroll sideways, not the page"
        assert found["dark"] == (theme == "dark")
        assert found["words"] > 300
        assert found["faint"] == []
        assert found["faintMarks"] == []
        assert (found["mute"], found["twice"]) == (0, [])
        assert not found["owned"]
        assert found["title"] == f"Failed: evaluation of {EVIL}"


def test_the_report_can_be_read_in_the_artifact_view_of_mlflow(report: Path, tmp_path: Path) -> None:
    """MLflow 3.17 puts a page into a frame that may run scripts and is of no origin, from a blob."""
    view = tmp_path / "view.html"
    page = json.dumps(report.read_text(encoding="utf-8")).replace("<", "\\u003c")
    view.write_text(
        f"""<body style="margin: 0"><script>
        const frame = document.createElement('iframe');
        frame.sandbox = 'allow-scripts';
        frame.style = 'display: block; width: 100vw; height: 100vh; border: 0';
        frame.src = URL.createObjectURL(new Blob([{page}], {{type: 'text/html'}}));
        document.body.append(frame);
        </script>""",
        encoding="utf-8",
    )

    seen = look(view, "light")

    assert (seen["requests"], seen["console"]) == ([], [])
    for found in seen["found"]:
        assert (found["verdict"], found["headSeen"]) == ("Failed", True)
        assert found["words"] > 300
        assert not found["owned"]


def test_the_browser_sees_what_a_page_loads_says_and_runs(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<title>{EVIL}<script>console.error('said')</script><p>text</p>", encoding="utf-8")

    seen = look(page, "light", "window.owned")

    assert seen["found"] == [1, 1]
    assert set(seen["requests"]) == {"http://127.0.0.1:9/x"}
    assert "said" in seen["console"]
