"""The live page in a real browser: what it shows, loses and finds again, all from one origin."""

import json
import math
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from browser import CHROMIUM, Browser
from deeprecsys.serving.page import CONTENT_SECURITY_POLICY, live_page, plotly_js

pytestmark = pytest.mark.engine

needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here: install Debian's package chromium"
)


def a_live(seconds=240):
    """What a busy server says."""
    t = [float(s) for s in range(seconds)]
    wave = [math.sin(s / 25) for s in t]
    p95 = [0.042 + 0.012 * w for w in wave]
    return {
        "model": "dlrm-rmc1", "version": "1", "state": "ready",
        "started": "2026-11-21T16:00:00+0000", "uptime_s": 3725.4,
        "sla": {"percentile": 95.0, "latency_s": 0.1},
        "policy": {"batch_size": 128, "offload_threshold": None},
        "policy_text": "batch size 128", "runtime": "torchscript", "workers": 2,
        "machine": {"cpu": "A Processor 8480C", "cores": 2},
        "now": {
            "rate_qps": 412.3, "answered_qps": 411.8, "items_per_s": 105_321.0, "p50_s": 0.0123,
            "p95_s": 0.0421, "p99_s": 0.0688, "queued_items": 310, "queued_queries": 1,
            "in_flight": 5, "busy_share": 0.885, "shed_per_s": 0.0, "expired_per_s": 0.0,
            "failed_per_s": 0.0,
        },
        "totals": {"queries": 1_532_100, "answered": 1_532_000, "shed": 80, "expired": 15,
                   "failed": 0, "cancelled": 3, "invalid": 2},
        "history": {
            "time_s": [3485.0 + s for s in t], "rate_qps": [400 + 30 * w for w in wave],
            "answered_qps": [400 + 30 * w for w in wave], "p50_s": [p / 3 for p in p95],
            "p95_s": p95, "p99_s": [1.6 * p for p in p95],
            "queued_items": [max(0.0, 900 * w) for w in wave],
            "busy_share": [0.8 + 0.15 * w for w in wave], "shed_per_s": [0.0 for _ in t],
        },
        "workers_busy": [0.91, 0.86],
        "sizes": [
            {"lo": 1, "hi": 127, "queries": 9321, "p50_s": 0.0041, "p95_s": 0.0123},
            {"lo": 128, "hi": 255, "queries": 10_021, "p50_s": 0.0098, "p95_s": 0.0297},
            {"lo": 256, "hi": 511, "queries": 4311, "p50_s": 0.0187, "p95_s": 0.0622},
            {"lo": 512, "hi": None, "queries": 911, "p50_s": 0.0412, "p95_s": 0.1144},
        ],
        "stages": {
            "receive": {"p50_s": 0.00031, "p95_s": 0.0009},
            "queue": {"p50_s": 0.0042, "p95_s": 0.0281},
            "compute": {"p50_s": 0.0072, "p95_s": 0.0163},
            "send": {"p50_s": 0.00009, "p95_s": 0.0003},
        },
    }  # fmt: skip


def an_empty_live(**more):
    """What a server says that nobody has asked yet: every measured number is null."""
    live = a_live(0)
    live["now"] = dict.fromkeys(live["now"])
    live["totals"] = dict.fromkeys(live["totals"], 0)
    live["stages"] = {name: {"p50_s": None, "p95_s": None} for name in live["stages"]}
    return live | {"uptime_s": 4.2, "workers_busy": [None, None], "sizes": [], **more}


class Site:
    """Serves the page, plotly, and as `/live.json` whatever `live` is; None is a 503."""

    def __init__(self):
        site = self
        self.live = None
        self.plotly = True

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                if self.path == "/":
                    self.answer(200, "text/html; charset=utf-8", live_page())
                elif self.path == "/plotly.min.js" and site.plotly:
                    self.answer(200, "text/javascript", plotly_js())
                elif self.path == "/live.json" and site.live is not None:
                    self.answer(200, "application/json", json.dumps(site.live).encode())
                else:
                    self.answer(503 if self.path == "/live.json" else 404, "text/plain", b"no")

            def answer(self, status, kind, body):
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header(
                    "Cache-Control", "max-age=60" if "plotly" in self.path else "no-store"
                )
                self.send_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.fixture(scope="module")
def site():
    with closing(Site()) as one:
        yield one


def opened(browser, site, live, **window):
    """The words of the page once it shows what the server says."""
    site.live = live
    browser.open(site.url, **window)
    browser.until("!document.body.classList.contains('waiting')")
    return words(browser)


DRAWN = "document.querySelectorAll('.figure svg.main-svg').length >= 6"


def words(browser):
    return browser.evaluate("document.body.innerText")


def drawn(browser):
    return browser.evaluate("document.querySelectorAll('.figure svg.main-svg').length")


def test_the_page_is_one_file_that_names_no_other_origin():
    page = live_page().decode()
    assert "live.css" not in page
    assert "live.js>" not in page
    assert not [word for word in ("http://", "https://", "innerHTML", "onclick", "eval(")
                if word in page]  # fmt: skip
    assert len(plotly_js()) > 1e6


@needs_browser
def test_a_busy_server_is_shown_and_nothing_leaves_its_origin(browser, site):
    shown = opened(browser, site, a_live())
    browser.until(DRAWN)
    for said in (
        "dlrm-rmc1", "ready", "up 1 h 2 min", "p95 42.1 ms of 100 ms: meets the target.",
        "of 100 ms: meets the target", "412", "105,321", "310 items", "of 1 query",
        "a query of more than 128 items is split into requests of at most 128",
        "1,532,100", "≥ 512", "128–255", "worker 1", "86 %", "A Processor 8480C",
        "0.31", "0.90", "waits for a worker",
    ):  # fmt: skip
        assert said in shown
    assert "target 100 ms" in browser.evaluate("document.getElementById('latency').textContent")
    assert browser.evaluate("document.title") == "dlrm-rmc1 · ready · p95 42.1 ms"
    assert browser.evaluate("$('card-95').className") == "card target good"
    assert {url.removeprefix(site.url) for url in browser.asked()} - {"data:,"} == {
        "/", "/plotly.min.js", "/live.json"}  # fmt: skip
    assert browser.complaints() == []


@needs_browser
def test_a_request_to_elsewhere_would_be_refused_and_seen(browser, site):
    """And eval too: that plotly draws shows that it needs none."""
    opened(browser, site, a_live(5))
    browser.evaluate("void fetch('http://127.0.0.1:9/x').catch(() => (window.refused = true))")
    browser.until("window.refused")
    assert "Content Security Policy" in "".join(browser.complaints())
    tried = browser.evaluate("(() => { try { return eval('1') } catch (e) { return e.name } })()")
    assert tried == "EvalError"


MEETS = "p95 42.1 ms of 100 ms: meets the target"
JUDGED = [
    ({}, {}, f"{MEETS}.", "good"),
    ({"p95_s": 0.0951}, {}, "p95 95.1 ms of 100 ms: meets the target, narrowly.", "near"),
    ({"p95_s": 0.1302}, {}, "p95 130 ms of 100 ms: misses the target.", "bad"),
    ({"shed_per_s": 4.123}, {}, f"{MEETS}; 1 % of the queries not answered.", "good"),
    ({"shed_per_s": 60.0}, {}, "misses the target; 15 % of the queries not answered.", "bad"),
    ({"p50_s": None, "p95_s": None, "p99_s": None}, {}, "No query in the last 10 s.", ""),
    # Other percentiles by those that are known: p95 meets it, so p90 does.
    ({}, {"percentile": 90.0, "latency_s": 0.05}, "p90: meets the target.", "good"),
    ({}, {"percentile": 99.9, "latency_s": 0.05}, "p99.9: misses the target.", "bad"),
    ({}, {"percentile": 99.9}, "p99.9, p99.9 ≤ 100 ms: undecided.", ""),
    ({}, {"latency_s": None}, "No target is set.", ""),
]  # fmt: skip


@needs_browser
def test_the_target_is_judged_in_words_and_in_colour(browser, site):
    opened(browser, site, a_live(5))
    for now, sla, said, level in JUDGED:
        live = a_live(5)
        live["now"] |= now
        live["sla"] |= sla
        verdict = browser.evaluate(
            f"show({json.dumps(live)}), [$('verdict').textContent, $('verdict').className]"
        )
        assert said in verdict[0]
        assert verdict[1].removeprefix("verdict").strip() == level


@needs_browser
def test_any_number_may_be_missing(browser, site):
    live = without_numbers(a_live(5)) | {"totals": {"queries": 1}}
    shown = opened(browser, site, live)
    browser.until(DRAWN)
    assert not [word for word in ("NaN", "null", "undefined", "Infinity") if word in shown]
    site.live = {}
    browser.until("document.getElementById('model').textContent === '–'")
    assert browser.complaints() == []
    assert browser.evaluate("document.getElementById('banner').hidden")
    site.live = {"totals": {"queries": 1}, "sizes": 3}
    browser.until("document.body.innerText.includes('that this page cannot show')")


def without_numbers(live):
    if isinstance(live, dict):
        return {name: without_numbers(value) for name, value in live.items()}
    if isinstance(live, list):
        return [without_numbers(value) for value in live]
    return None if isinstance(live, (int, float)) else live


@needs_browser
def test_before_the_first_query_the_page_says_how_to_send_some(browser, site):
    shown = opened(browser, site, an_empty_live())
    assert "No query yet" in shown
    assert f"deeprecsys load {site.url} --model dlrm-rmc1 --qps 50" in shown
    assert drawn(browser) == 0
    assert "NaN" not in shown
    assert "null" not in shown
    assert browser.complaints() == []
    site.live = a_live(3)
    browser.until(DRAWN)
    assert "No query yet" not in words(browser)


@needs_browser
def test_a_lost_server_is_said_its_last_words_stay_and_it_is_found_again(browser, site):
    opened(browser, site, a_live(5))
    site.live = None
    browser.until("document.body.classList.contains('lost')")
    shown = words(browser)
    assert "no connection since " in shown
    assert "(it answers 503)" in shown
    assert "p95 42.1 ms of 100 ms" in shown
    assert browser.evaluate("document.title").startswith("no connection")
    site.live = a_live(5) | {"state": "draining"}
    browser.until("!document.body.classList.contains('lost')")
    shown = words(browser)
    assert "no connection" not in shown
    assert "Draining: it answers the queries it has" in shown


@needs_browser
def test_what_the_server_says_cannot_become_markup(browser, site):
    attack = "<script>document.title = 'taken'</script><img src=x>"
    live = a_live(5) | {"model": attack, "version": attack, "policy_text": attack,
                        "runtime": attack, "machine": {"cpu": attack, "cores": attack},
                        "stages": {attack: {"p50_s": 0.1, "p95_s": 0.2}}}  # fmt: skip
    assert attack in opened(browser, site, live)
    assert browser.evaluate("document.getElementById('model').textContent") == attack
    assert browser.evaluate("document.images.length + document.scripts.length") == 2
    empty = an_empty_live(model=attack)
    assert "--model '<script>document.title = '\\''taken'\\''" in opened(browser, site, empty)


@needs_browser
def test_a_phone_shows_everything_in_its_width(browser, site):
    live = a_live() | {"workers_busy": [0.9] * 40}
    opened(browser, site, live, width=390, height=844, dark=True)
    browser.until(DRAWN)
    assert browser.evaluate("document.documentElement.scrollWidth") == 390


@needs_browser
def test_without_plotly_the_words_stay(browser):
    with closing(Site()) as site:
        site.plotly = False
        opened(browser, site, a_live(5))
        browser.until("document.body.innerText.includes('No charts: /plotly.min.js did not load')")
        assert "p95 42.1 ms of 100 ms" in words(browser)
