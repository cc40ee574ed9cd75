"""A wrong request gets one line and exit code 2."""

import pytest
from small import SMALL

from deeprecsys.cli.main import call


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["simulate", "--qps", "1"], "give a MODEL, --service LAW or --profile FILE"),
        (["simulate", "ncf", "--service", "constant:1", "--qps", "1"], "law of its own"),
        (["simulate", "--service", "linear:1", "--qps", "1"], "cannot read the service time"),
        (["simulate", "--service", "constant:1", "--qps", "-1"], "--qps must be positive"),
        (["simulate", "--service", "constant:1"], "give --qps, or --tune"),
        (["simulate", "--service", "constant:1", "--tune"], "--tune needs a target"),
        (["simulate", "--service", "constant:1", "--tune", "--qps", "1"], "leave out --qps"),
        (["simulate", "--service", "constant:1", "--qps", "1", "--workers", "0"], "--workers must"),
        (["simulate", "--profile", "nosuch.json", "--qps", "1"], "no file nosuch.json"),
        (["simulate", "--service", "constant:1", "--profile", "x", "--qps", "1"], "not both"),
        (["simulate", "nosuch", "--qps", "1"], "unknown model 'nosuch'"),
        (["bench", "nosuch", "--qps", "1"], "unknown model 'nosuch'; known: ncf"),
        (["bench", "ncf", "--qps", "1", "--accelerator", "tpu"], "unknown accelerator 'tpu'"),
        (["bench", "ncf", "--qps", "1", "--accelerator", "cuda:x"], "unknown accelerator 'cuda:x'"),
        (["bench", "ncf", "--qps", "1", "--accelerator", "cuda:7"], "no GPU cuda:7"),
        (["bench", "ncf", "--qps", "1", "--accelerator", "emulated:no.json"], "no file no.json"),
        (["bench", "ncf", "--qps", "1", "--offload-threshold", "9"], "needs an --accelerator"),
        (["bench", "ncf", "--qps", "1", "--offload-backlog", "9"], "needs an --offload-threshold"),
        (["bench", "ncf", "--qps", "1", "--watts", "core=9:1"], "idle not above busy"),
        (
            ["bench", "ncf", "--qps", "1", "--accelerator", "cuda:0", "--execution", "packed"],
            "leave out --accelerator cuda, or --execution",
        ),
        (["simulate", "ncf", "--qps", "1", "--accelerator", "cuda:7"], "no GPU cuda:7"),
        (["bench", "ncf"], "give --qps"),
        (["bench", "ncf", "--qps", "0"], "must be a positive"),
        (["bench", "ncf", "--qps", "-3"], "must be a positive"),
        (["bench", "ncf", "--qps", "nan"], "must be a positive"),
        (["bench", "ncf", "--qps", "many"], "--qps"),
        (["bench", "ncf", "--qps", "1", "--duration-s", "0"], "duration_s must be"),
        (["bench", "ncf", "--qps", "1", "--queries", "0"], "queries must be"),
        (["bench", "ncf", "--qps", "1", "--batch-size", "0"], "batch_size must be"),
        (["bench", "ncf", "--qps", "1", "--scale", "0"], "scale must be"),
        (["bench", "ncf", "--qps", "1", "--scale", "-1"], "scale must be"),
        (["bench", "ncf", "--qps", "1", "--workers", "0"], "--workers must be positive"),
        (["bench", "ncf", "--qps", "1", "--sla-ms", "-5"], "SLA latency must be positive"),
        (["bench", "ncf", "--qps", "1", "--percentile", "100"], "percentile must lie"),
        (["bench", "ncf", "--qps", "1", "--sizes", "nosuch"], "sizes"),
        (["bench", "ncf", "--qps", "1", "--sizes", "fixed:-4"], "-4"),
        (["bench", "ncf", "--qps", "1", "--arrivals", "sometimes"], "arrivals"),
        (["bench", "ncf", "--qps", "1", "--arrivals", "replay:none.csv"], "none.csv"),
        (["bench", "ncf", "--qps", "1", "--indices", "zipf:x"], "zipf"),
        (["bench", "ncf", "--qps", "1", "--variant", "mine"], "variant"),
        (["bench", "ncf", "--qps", "1", "--query-inputs"], "ncf has no inputs that belong to the"),
        (
            ["bench", "ncf", "--qps", "1", "--execution", "rows=fp8"],
            "rows are fp32 or fp16 or int8",
        ),
        (["bench", "ncf", "--qps", "1", "--execution", "fast"], "say exact, or rows=fp16|int8"),
        (["bench", "din", "--qps", "1", "--execution", "user=query"], "add --query-inputs, or"),
        (["bench", "ncf", "--qps", "1", "--execution", "packed,kept=no"], "it has mlp, predict"),
        (["simulate", "--service", "constant:1", "--qps", "1", "--execution", "packed"], "MODEL"),
        (["bench", "ncf", "--qps", "1", "--runtime", "abacus"], "unknown runtime 'abacus'"),
        (["bench", "ncf", "--qps", "1", "--json", "no/such/dir.json"], "no such folder"),
        (["bench", "ncf", "--qps", "1", "--out", "/proc/nowhere"], "choose another --out"),
        (["tune", "ncf", "--method", "guess"], "unknown method 'guess'; known: hill-climb"),
        (["tune", "ncf", "--budget-s", "0"], "--budget-s must be positive"),
        (["tune", "ncf", "--duration-s", "-1"], "--duration-s must be positive"),
        (["tune", "ncf", "--nonsense"], "--nonsense"),
        (["report", "nowhere"], "nowhere is no run folder"),
        (["compare", "nowhere", "nowhere"], "nowhere is no run folder"),
        (["nosuchverb"], "nosuchverb"),
    ],
)
def test_a_wrong_request_gets_one_line_and_exit_code_2(arguments, says, capsys):
    assert call(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("deeprecsys: ")
    assert says in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("arrival_s\n0.1\n", "size"),
        ("arrival_s,size\n0.2,5\n0.1,5\n", "row 2: arrival_s must not precede"),
        ("arrival_s,size\n-1,5\n", "row 1: arrival_s must be 0 s or later"),
    ],
)
def test_a_damaged_trace_is_refused_saying_where(tmp_path, text, says, capsys):
    (tmp_path / "trace.csv").write_text(text)
    assert call(["bench", "ncf", "--arrivals", f"replay:{tmp_path}/trace.csv", *SMALL]) == 2
    assert says in capsys.readouterr().err


def test_too_little_memory_is_said_before_loading_with_the_scale_that_fits(monkeypatch, capsys):
    from deeprecsys.models import model

    monkeypatch.setattr(model, "available_bytes", lambda: 2_000_000_000)
    assert call(["bench", "dlrm-rmc1", "--qps", "1"]) == 2
    said = capsys.readouterr().err
    assert "needs 5.1 GB" in said
    assert "2.0 GB are free" in said
    assert "largest scale that fits is 0.24" in said


def test_a_damaged_summary_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "summary.json").write_text("{")
    assert call(["report", str(tmp_path)]) == 2
    assert "cannot read" in capsys.readouterr().err


@pytest.mark.parametrize("sizes", ["0", "1,x", "-3", ""])
def test_profile_refuses_batch_sizes_that_are_none(sizes, capsys):
    assert call(["profile", "ncf", "--batch-sizes", sizes]) == 2
    assert "--batch-sizes must be whole numbers" in capsys.readouterr().err
