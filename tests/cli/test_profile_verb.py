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
    assert call([*arguments, "--budget-s", "2", "--operators"]) == 0
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
