"""`deeprecsys profile`: it goes on where it stopped."""

import json

import numpy as np
import pytest
from small import SMALL

from deeprecsys.cli.main import call
from deeprecsys.machines.service_time import Profile, ServiceTime

pytestmark = pytest.mark.engine


def test_profile_goes_on_refuses_another_model_and_is_what_a_service_time_reads(tmp_path, capsys):
    folder = tmp_path / "p"
    arguments = ["profile", "ncf", *SMALL, "--batch-sizes", "1,16", "--out", str(folder)]
    assert call([*arguments, "--budget-s", "0.05"]) == 0
    first = Profile.load(folder / "profile.json")
    assert call([*arguments, "--budget-s", "1", "--operators"]) == 0
    assert "going on with the profile" in capsys.readouterr().out
    second = Profile.load(folder / "profile.json")
    assert all(len(second.points[p].seconds) >= len(s.seconds) for p, s in first.points.items())
    assert {batch for batch, _ in second.points} == {1, 16}
    assert ServiceTime.from_profile(folder / "profile.json")(np.array([8.0]))[0] > 0
    summary = json.loads((folder / "summary.json").read_text())
    assert {e["batch_size"] for e in summary["operators"]} == {1, 16}
    assert (folder / "report.html").is_file()
    assert call(["profile", "wnd", *SMALL, "--out", str(folder)]) == 2
    assert "the profile is of model ncf, not wnd" in capsys.readouterr().err


def test_executions_are_timed_beside_exact_and_what_cannot_be_made_is_said(tmp_path, capsys):
    arguments = ["profile", "dlrm-rmc1", *SMALL, "--query-inputs", "--batch-sizes", "4,16"]
    arguments += ["--budget-s", "0.5", "--executions"]
    assert call([*arguments, "--out", str(tmp_path / "p")]) == 0
    out = capsys.readouterr().out
    rows = json.loads((tmp_path / "p" / "summary.json").read_text())["executions"]
    able = {row["execution"]: row for row in rows if not row["why"]}
    assert {"exact", "packed", "rows=fp16", "layers=int8", "user=query"} <= set(able)
    assert able["exact"]["ratio"] == 1
    assert all(set(row["seconds"]) == {"4", "16"} for row in able.values())
    assert all(f"not {row['execution']}: {row['why'][:40]}" in out for row in rows if row["why"])
    report = (tmp_path / "p" / "report.html").read_text()
    assert "over exact" in report
    assert "dlrm-rmc1, rows=fp16" in report, "no point under the roofs"
    assert call([*arguments, "--execution", "packed", "--out", str(tmp_path / "q")]) == 2
    assert "holds all others against exact: leave out --execution" in capsys.readouterr().err
