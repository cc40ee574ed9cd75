"""The report: complete, safe, offline; drawn by a real browser without errors or requests."""

import json
import re

import numpy as np
import pytest

from browser import CHROMIUM, Browser
from deeprecsys.cli.main import call
from deeprecsys.core import Records, Requests, UserError
from deeprecsys.report import render, write_report
from deeprecsys.report.figures import capacity, executions, fleet, latency
from deeprecsys.report.html import grid
from deeprecsys.report.text import interval, ms, rate, ratio

needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here: install Debian's package chromium"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


def run(qps, p95, meets, **more):
    return {
        "rate_qps": qps, "p50_s": 0.01, "p95_s": p95, "p99_s": p95 and 1.3 * p95,
        "p95_interval_s": [p95 and 0.9 * p95, None], "meets_sla": meets, "queries": 1200,
        "duration_s": 4.0, "generator_lag_p99_s": 2e-4, "seed": 0, "stopped_early": False, **more,
    }  # fmt: skip


def trial(batch_size, qps, lo, hi, runs=(), decided=True):
    return {
        "policy": {"batch_size": batch_size, "offload_threshold": None},
        "capacity": {"rate_qps": qps, "interval_qps": [lo, hi], "decided": decided},
        "runs": list(runs),
    }


def tune_summary():
    best = trial(256, 871.0, 853.0, 889.0, [run(850, 0.08, True), run(900, 0.15, False),
                                            run(870, 0.099, None, disturbance=0.3)])  # fmt: skip
    static = trial(500, 860.0, 840.0, 880.0, [run(860, 0.09, None)])
    hopeless = trial(1, 0.0, 0.0, None, [run(20, None, False)], decided=False)
    chosen = {name: best[name] for name in ("policy", "capacity")}
    return {
        "verb": "tune", "model": "dlrm-rmc1", "variant": "paper", "scale": 1.0, "seed": 0,
        "method": "hill-climb", "sla": {"percentile": 95, "latency_s": 0.1},
        "verdict": "batch size 256: 871 queries/s", "binds": "memory: rows", "best": chosen,
        "baseline": {name: static[name] for name in ("policy", "capacity")},
        "speedup": {"ratio": 1.01, "interval": [0.98, 1.04], "significant": False},
        "comparisons": [
            {"name": "the static baseline", "policy": static["policy"], "ratio": 1.01,
             "interval": [0.98, 1.04], "significant": False},
            {"name": "the paper's literal", "policy": trial(25, 1, 1, 1)["policy"], "ratio": None,
             "interval": [None, None], "significant": None},
        ],
        "trials": [hopeless, best, static], "workload": {"notes": {"sizes": "production"}},
        "machine": {"cpu": "some cpu", "memory_bytes": 2**34}, "versions": {"python": "3"},
        "command": "deeprecsys tune dlrm-rmc1", "interrupted": True, "elapsed_s": 100.0,
        "accuracy": "99.9", "executions": tried(),
    }  # fmt: skip


def tried():
    """Exact; searched; admitted, and not searched; refused by the guard; not made."""

    def row(name, ratio, p999=None, why="", qps=None):
        drift = p999 and {
            "candidates": 12_000, "queries": 40, "spread": 0.2, "largest": 3 * p999, "p999": p999,
            "shift": 1e-6, "rank_correlation": 0.9999, "top10": 0.998, "top50": 0.999,
            "own_error": None, "quality": None,
        }  # fmt: skip
        return {
            "execution": name, "ratio": ratio, "interval": [0.9 * ratio, 1.1 * ratio],
            "seconds": {"16": 1e-3 / ratio, "64": 3e-3 / ratio}, "drift": drift,
            "admitted": not why, "why": why, "capacity": qps and trial(64, qps, 0.9 * qps,
                                                                     None)["capacity"],
        }  # fmt: skip

    refused = {"execution": "layers=bf16,packed", "ratio": None, "interval": [None, None],
               "seconds": {}, "drift": None, "admitted": False, "capacity": None,
               "why": "this machine cannot execute <it>"}  # fmt: skip
    return [
        row("exact", 1.0, qps=871.0),
        row("rows=fp16,layers=int8", 1.9, 4e-4, qps=1500.0),
        row("layers=int8", 1.6, 3.5e-4),
        row("rows=int8", 1.2, 2e-2, "top 10 shared 91 %, at least 99 %"),
        row("packed", 0.9, why="not faster"),
        refused,
    ]


def no_answer():
    """A target that no rate meets."""
    return tune_summary() | {
        "best": None, "comparisons": [], "speedup": {"ratio": None, "interval": [None, None],
        "significant": None}, "trials": [trial(1, 0.0, 0.0, None)],
        "verdict": "no rate meets p95 ≤ 0.1 ms",
    }  # fmt: skip


def bench_summary():
    return {
        "verb": "bench", "model": "wnd", "rate_qps": 50.0, "policy": {"batch_size": 128},
        "queries": 500, "duration_s": 10.0, "throughput_qps": 50.1, "items_per_s": 13_000.0,
        "p50_s": 0.007, "p95_s": 0.02, "p99_s": 0.03, "p50_interval_s": [0.006, 0.008],
        "p95_interval_s": [0.018, 0.022], "p99_interval_s": [0.02, None], "by_size": [],
        "meets_sla": None, "errors": {}, "generator_lag_p99_s": 1e-4,
        "sla": {"percentile": 95, "latency_s": 0.025}, "machine": {}, "versions": {},
        "workload": {}, "seed": 0, "command": "deeprecsys bench wnd",
    }  # fmt: skip


def records(n=5000):
    rng = np.random.default_rng(0)
    arrival = np.sort(rng.uniform(0, 10, n))
    finish = arrival + rng.lognormal(-4, 1, n)
    finish[:5] = np.nan
    size = rng.integers(1, 700, n)
    return Records.from_columns({"arrival_s": arrival, "finish_s": finish, "size": size})


def profile_summary():
    def point(batch, busy):
        s = 1e-3 * batch**0.8 * (1 + 0.1 * busy)
        return {
            "batch_size": batch, "busy": busy, "samples": 50, "rounds": 4, "median_s": s,
            "mean_s": s, "p5_s": 0.9 * s, "p95_s": 1.3 * s, "items_per_s": busy * batch / s,
            "limits_share": 0.6,
        }  # fmt: skip

    shares = {"FC": 0.2, "embedding": 0.7, "attention": 0.0, "recurrent": 0.0, "rest": 0.1}
    roof = {"batch_size": 1, "flops_per_byte": 2.0, "flops_per_s": 3e9, "flops": 1, "bytes": 1}
    return {
        "verb": "profile", "model": "wnd", "sla": {"percentile": 95, "latency_s": 0.025},
        "workers": 2, "points": [point(b, w) for w in (1, 2) for b in (1, 16, 256)],
        "executions": [row | {"why": ""} for row in tried() if row["ratio"]] + [
            {"execution": "layers=bf16,packed", "why": "this machine cannot"}],
        "operators": [{"batch_size": 64, "shares": shares}], "paper_shares": {"FC": 0.9},
        "roofline": {
            "roofs": {"fp32": {"flops_per_s": 2e11}, "bf16": {"flops_per_s": 4e11, "dash": "dash"}},
            "stream_bytes_per_s": 5e10, "random_bytes_per_s": 1e10,
            "models": {"wnd": [roof], "wnd, rows=fp16": [roof]},
        },
        "machine": {}, "versions": {}, "workload": {}, "seed": 0, "command": "deeprecsys profile",
    }  # fmt: skip


def requests(records, batch=128):
    """Each query's requests one after the other over its own time."""
    rows = np.repeat(np.arange(len(records)), -(-records.size // batch))
    first = np.searchsorted(rows, rows)
    lo = (np.arange(len(rows)) - first) * batch
    share = 1 / (-(-records.size // batch))[rows]
    took = np.nan_to_num(records.latency_s, nan=1.0)[rows]
    start = records.arrival_s[rows] + (np.arange(len(rows)) - first) * share * took
    finish = start + share * took
    order = np.argsort(finish, kind="stable")
    return Requests.from_columns(
        {"query": rows, "lo": lo, "hi": np.minimum(lo + batch, records.size[rows]),
         "worker": rows % 2, "start_s": start, "finish_s": finish}
    )[order]  # fmt: skip


MAKE = {"tune": tune_summary, "no-answer": no_answer, "profile": profile_summary}


@pytest.fixture(params=["tune", "no-answer", "bench", "bench-without-records", "profile"])
def folder(request, tmp_path):
    kind = request.param
    (tmp_path / "summary.json").write_text(json.dumps(MAKE.get(kind, bench_summary)()))
    if kind in ("tune", "bench"):
        table = records()
        table.save(tmp_path / "records.parquet")
        requests(table).save(tmp_path / "requests.parquet")
    return tmp_path


def test_unanswered_queries_stay_in_the_tail():
    answered = np.where(np.arange(1000) % 5 == 0, np.nan, 0.01)
    lost = Records.from_columns(
        {"arrival_s": np.zeros(1000), "finish_s": answered, "size": np.ones(1000)}
    )
    figure = latency.distribution(bench_summary(), lost)
    assert figure["data"][0]["y"][-1] == pytest.approx(20, abs=0.2)


def test_thinning_keeps_the_slowest_query():
    finish = np.full(100_000, 0.01)
    finish[-2] = 9.0
    many = Records.from_columns(
        {"arrival_s": np.zeros(100_000), "finish_s": finish, "size": np.ones(100_000)}
    )
    drawn = latency.over_time(bench_summary(), many)["data"][0]["y"]
    assert len(drawn) <= 2000
    assert max(drawn) == 9000


def test_an_undecided_capacity_is_drawn_hollow():
    summary = tune_summary()
    for one in summary["trials"]:
        one["capacity"]["decided"] = False
    drawn = capacity.by_batch(summary)["data"]
    symbols = {str(s) for t in drawn for s in np.atleast_1d(t["marker"]["symbol"])}
    assert symbols == {"circle-open", "diamond-open", "star-open", "x-open"}


def test_each_capacity_is_hollow_for_itself():
    summary = tune_summary()
    summary["trials"][1]["capacity"]["decided"] = False
    curve = capacity.by_batch(summary)["data"][0]
    assert curve["marker"]["symbol"] == ["circle-open", "circle"]


def test_each_way_to_execute_a_request_has_a_curve_of_its_own():
    summary = tune_summary()
    for batch_size in (500, 256):
        summary["trials"].append(trial(batch_size, 900.0, 880.0, 920.0))
        summary["trials"][-1]["policy"]["execution"] = {"rows": "fp16"}
    drawn = {trace["name"]: trace["x"] for trace in capacity.by_batch(summary)["data"]}
    assert drawn["exact fp32"] == drawn["rows=fp16"] == [256, 500]
    assert drawn["the static baseline"] == [500]


def test_markup_in_the_name_of_a_kind_is_shown_as_it_stands():
    summary = {"time_s": [0.5], "busy": {"a<b>": [0.2]}, "devices_busy": {"a<b>": [0.1]}}
    names = [trace["name"] for trace in fleet.busy(summary)["data"]]
    assert names == ["a&lt;b&gt;", "a&lt;b&gt;, accelerators"]


def test_what_holds_at_no_rate_is_drawn_as_such():
    names = [trace["name"] for trace in capacity.by_batch(tune_summary())["data"]]
    assert "no rate" in names


def test_an_execution_stands_at_its_drift_filled_where_its_capacity_was_measured():
    within, refused = executions.against_drift(tune_summary())["data"]
    assert within["text"] == ["rows=fp16,layers=int8", "layers=int8"]
    assert within["x"] == pytest.approx([2e-3, 1.75e-3])
    assert within["y"] == pytest.approx([1500 / 871, 1.6])
    assert within["marker"]["symbol"] == ["circle", "circle-open"]
    assert within["error_y"]["arrayminus"] == pytest.approx([150 / 871, 0.16])
    assert (refused["text"], refused["y"]) == (["rows=int8"], [1.2])
    assert executions.against_drift(tune_summary() | {"executions": tried()[:1]}) is None


def test_a_baseline_without_a_rate_is_not_called_unmeasured():
    summary = tune_summary()
    summary["trials"][0] |= {"policy": summary["comparisons"][1]["policy"]}
    assert "not measured" in render(summary)
    summary["trials"][0]["capacity"]["decided"] = True
    assert "it holds the target at no rate" in render(summary)


def test_queries_without_an_answer_are_said():
    assert "5 of 5,000 had no answer: slower than any" in render(bench_summary(), records())


def test_a_percentile_beyond_all_answers_is_said():
    html = own_part(render(bench_summary() | {"p95_s": None, "p95_interval_s": [0.1, None]}))
    assert "p95 – too few answers, undecided whether it meets p95 ≤ 25 ms" in html


def test_the_share_of_the_limits_is_that_of_the_rate_beside_it():
    summary = profile_summary()
    for point in summary["points"]:
        point["items_per_s"] /= 3  # a noisy machine: a few slow requests, the same median
    assert "<dd>20%<small>at that batch size" in own_part(render(summary))


def test_words_stand_left_and_numbers_right():
    html = grid(["kind", "s", "share", "bounds"], [["16-cores", "1.2 early", "5%", "[1, –]"]])
    assert html.count("class=text") == 2  # the head of the column, and its cell
    assert "<td class=text>16-cores" in html


def own_part(html):
    """The page without the inlined library."""
    return re.sub(r"<script>/\*\*.*?</script>", "", html, flags=re.DOTALL)


def test_the_report_is_one_file_of_at_most_6_mb_that_loads_nothing(folder):
    path = write_report(folder)
    assert path.stat().st_size <= 6e6
    page = own_part(path.read_text())
    assert len(page) < 1e6
    assert not re.findall(r"(?:src|href)\s*=\s*['\"]?(?!data:)[^#>\s]*//", page)


def test_the_verdict_comes_first_and_the_command_to_repeat_it_is_there(folder):
    html = own_part(write_report(folder).read_text())
    summary = json.loads((folder / "summary.json").read_text())
    assert html.index("<h1>") < html.index("<h2>")
    assert summary["command"] in html
    if summary["verb"] != "profile":
        assert f"p95 ≤ {summary['sla']['latency_s'] * 1e3:g} ms" in html


def test_what_a_summary_says_cannot_become_markup(tmp_path):
    summary = tune_summary()
    attack = "</script><script>alert(1)</script><img src=x>"
    summary |= {"verdict": attack, "command": attack, "binds": attack, "model": attack}
    summary["comparisons"][0]["name"] = attack
    summary["machine"] = {"cpu": attack, attack: 1}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    html = own_part(write_report(tmp_path).read_text())
    assert "<script>alert" not in html
    assert "<img" not in html


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"verb": "dance"}', '{"verb": "tune"}', '{"verb": "bench", "sla": 3}']
)
def test_a_damaged_summary_is_refused(tmp_path, text):
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(UserError):
        write_report(tmp_path)


def test_a_folder_without_a_summary_is_no_run_folder(tmp_path):
    with pytest.raises(UserError, match="is no run folder: it has no summary"):
        write_report(tmp_path)


def test_numbers_read_as_a_person_writes_them():
    assert [rate(v) for v in (871.4, 12.34, 1234.5, None)] == ["871", "12.3", "1,234", "–"]
    assert [ms(v) for v in (0.1234, 0.00567, float("inf"))] == ["123", "5.67", "–"]
    assert interval([1.0, None], rate) == "[1, –]"
    assert (
        ratio({"ratio": 1.2, "interval": [1.1, 1.3], "significant": True}) == "1.20× [1.10, 1.30]"
    )
    assert ratio({"ratio": None}) == "not measured"


@needs_browser
def test_a_browser_draws_every_figure_without_errors_or_requests(folder, browser):
    assert_drawn(browser, write_report(folder))


def many_models():
    points = [{"batch_size": 1, "flops_per_byte": 2.0, "flops_per_s": 3e9}]
    summary = profile_summary()
    summary["roofline"]["models"] = {f"model-{n} of a long name": points for n in range(11)}
    return summary


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_no_legend_lies_over_its_picture(tmp_path, browser, width):
    overlaps = """
        [...document.querySelectorAll(".figure")].filter((figure) => {
          const legend = figure.querySelector(".legend")?.getBoundingClientRect();
          const plot = figure.querySelector(".bglayer rect, .gridlayer").getBoundingClientRect();
          return legend && legend.left < plot.right - 1 && legend.right > plot.left + 1
            && legend.top < plot.bottom - 1 && legend.bottom > plot.top + 1;
        }).map((figure) => figure.id)"""
    for summary in (tune_summary(), many_models()):
        (tmp_path / "summary.json").write_text(json.dumps(summary))
        browser.open(write_report(tmp_path).as_uri(), width=width)
        assert browser.evaluate("document.querySelectorAll('.legend').length") > 1
        assert browser.evaluate(overlaps) == []


FLEET = """
[day]
seconds = 4
[[model]]
name = "m"
qps = 500
sla_ms = 100
[[kind]]
name = "cores"
workers = 2
count = 3
service = "linear:2e-4,2e-5"
cost = 1.0
watts = [50, 100]
[[kind]]
name = "with <device>"
workers = 2
service = "linear:2e-4,2e-5"
accelerator = "service:linear:1e-3,2e-6"
batch_size = 512
offload_threshold = 300
cost = 3.0
"""


@needs_browser
@pytest.mark.usefixtures("short_simulations")
@pytest.mark.parametrize(
    "verb", [["simulate", "--fleet"], ["plan", "--balancer", "two-choices"]], ids=lambda v: v[0]
)
def test_a_browser_draws_fleets_and_plans(tmp_path, monkeypatch, browser, verb):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.toml").write_text(FLEET)
    assert call([*verb, "f.toml", "--out", "o"]) == 0
    assert assert_drawn(browser, tmp_path / "o" / "report.html") == (
        3 if verb[0] == "simulate" else 1
    )
    assert call(["report", "o"]) == 0


def assert_drawn(browser, page):
    """Every figure of it, and nothing said on the console or asked for; how many there are."""
    browser.open(page.as_uri())
    figures = own_part(page.read_text()).count("class=figure")
    browser.until(f"document.querySelectorAll('.main-svg').length >= {2 * figures}")
    assert browser.complaints() == []
    assert browser.asked() == [page.as_uri()]
    return figures


@needs_browser
def test_a_request_would_be_seen(tmp_path, browser):
    """The page's policy turns any request into an error on the console: the test above sees it."""
    (tmp_path / "summary.json").write_text(json.dumps(bench_summary()))
    page = write_report(tmp_path)
    page.write_text(page.read_text().replace("<main>", "<main><img src=http://127.0.0.1:9/x.png>"))
    browser.open(page.as_uri())
    assert "Content Security Policy" in "".join(browser.complaints())
