"""`deeprecsys simulate --fleet` and `plan`: the examples, exit codes, wrong files."""

import json
from pathlib import Path

import pytest

from deeprecsys.cli.main import call

pytestmark = pytest.mark.usefixtures("short_simulations")

ROOT = Path(__file__).parent.parent.parent


def test_a_fleet_s_day_from_the_example(tmp_path, capsys):
    text = (ROOT / "examples" / "fleet.toml").read_text().replace("seconds = 300", "seconds = 10")
    (tmp_path / "f.toml").write_text(text.replace("down_s = 20", "down_s = 2"))
    assert call(["simulate", "--fleet", "f.toml", "--out", "day", "--json", "d.json"]) == 0
    found = json.loads((tmp_path / "d.json").read_text())
    assert found["fleet"]["machines"] == 16
    assert found["queries"] == pytest.approx(300_000, rel=0.02)
    assert found["retried"] > 0
    assert found["unserved"] == 0
    assert set(found["busy"]) == {"small", "large", "with-gpu"}
    assert max(found["rate_qps"]) > 1.5 * min(found["rate_qps"])
    assert len(found["models"][0]["over_time"]["p95_s"]) == len(found["time_s"])
    said = capsys.readouterr().out
    assert "meets p95 ≤ 100 ms" in said
    report = (tmp_path / "day" / "report.html").read_text()
    assert "Utilisation by kind" in report
    assert "is emulated" in report


def test_a_plan_from_the_example(tmp_path, capsys):
    text = (ROOT / "examples" / "plan.toml").read_text()
    kinds = text.split("[[kind]]")
    assert len(kinds) == 4
    few = "[[kind]]".join(kinds[:3]).replace("workers = 16", "workers = 2")
    (tmp_path / "plan.toml").write_text(
        few.replace("workers = 40", "workers = 5\nbatch_size = 1024")
    )
    plan = ["plan", "plan.toml", "--balancer", "two-choices"]
    assert call([*plan, "--qps", "1e6", "--spare", "2", "--out", "p", "--json", "p.json"]) == 0
    found = json.loads((tmp_path / "p.json").read_text())
    (chosen,) = found["chosen"]
    assert chosen["machines"] == -(-1_000_000 // chosen["fleet_qps"]) + 2
    assert 0.5 * chosen["single_qps"] <= chosen["fleet_qps"] <= 1.1 * chosen["single_qps"]
    cheapest = min(found["answers"], key=lambda a: a["cost"])
    assert chosen["kind"] == cheapest["kind"]
    policy = json.loads((tmp_path / "p" / f"policy-{chosen['kind']}.json").read_text())
    assert policy["policy"] == chosen["policy"]
    assert "kW at the peak" in capsys.readouterr().out
    assert "Machines needed" in (tmp_path / "p" / "report.html").read_text()


def test_a_target_that_no_number_of_machines_meets(tmp_path, capsys):
    (tmp_path / "p.toml").write_text(
        '[[model]]\nname = "m"\nqps = 100\nsla_ms = 1\n'
        '[[kind]]\nname = "slow"\nworkers = 2\nservice = "constant:0.01"\n'
    )
    assert call(["plan", "p.toml"]) == 1
    assert "an idle machine gives 10 ms" in capsys.readouterr().out


KIND = '[[kind]]\nname = "k"\nworkers = 2\nservice = "constant:0.01"\n'
TRAFFIC = '[[model]]\nname = "m"\nqps = 10\nsla_ms = 50\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no kind of machine"),
        (KIND, "has no traffic"),
        (TRAFFIC + KIND.replace("service", "servce"), "unknown field `servce`"),
        (TRAFFIC + KIND.replace('service = "constant:0.01"\n', ""), "needs a profile or a service"),
        (TRAFFIC + KIND + "count = 0\n", "count must be at least 1"),
        (TRAFFIC + KIND + KIND, "two kinds have one name"),
        (TRAFFIC + KIND + "cost = -1\n", "a cost must not be negative"),
        (TRAFFIC + KIND + "watts = [200, 100]\n", "idle not above"),
        (TRAFFIC + KIND + "[failures]\nfraction = 1.0\n", "lies between 0 and 1, not 1"),
        (TRAFFIC + KIND + '[[event]]\nat_s = 1\nmachine = 7\nwhat = "down"\n', "no machine 7"),
        (TRAFFIC.replace("10", "-1") + KIND, "qps of m must be positive"),
        (TRAFFIC.replace("qps = 10", "") + KIND, "has no qps"),
        ('balancer = "best"\n' + TRAFFIC + KIND, "unknown balancer 'best'"),
        ("x = = 1", "cannot read f.toml"),
    ],
)
def test_a_wrong_fleet_file_is_one_line(tmp_path, capsys, text, says):
    (tmp_path / "f.toml").write_text(text)
    assert call(["simulate", "--fleet", "f.toml"]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_contradictory_costs_are_refused(tmp_path, capsys):
    other = KIND.replace('"k"', '"l"') + "cost = 1\n"
    (tmp_path / "f.toml").write_text(TRAFFIC + KIND + other)
    assert call(["plan", "f.toml"]) == 2
    assert "cost of every kind, or of none" in capsys.readouterr().err
