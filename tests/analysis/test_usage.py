"""How busy everything was and what it drew: from records and requests, by hand."""

import math

import numpy as np
import pytest

from deeprecsys.analysis.usage import Watts, sentences, usage
from deeprecsys.core import Records, Requests, UserError
from deeprecsys.engine.power import Meter

GPU = {"name": "gpu", "emulated": True}


def a_run():
    """10 s; two workers, 4 and 2 s busy; one accelerator, requests from 0 to 4 and from 3 to 5."""
    records = Records.from_columns({
        "arrival_s": np.zeros(5), "finish_s": np.array([10.0, 6.0, 4.0, 4.0, math.nan]),
        "size": np.array([10, 20, 30, 40, 999]), "device": np.array([0, 0, 1, 1, 1]),
    })  # fmt: skip
    requests = Requests.from_columns({
        "query": [0, 1, 2, 3, 0, 4], "lo": [0] * 6, "hi": [10, 20, 30, 40, 10, 999],
        "worker": [0, 1, 2, 2, 0, 2], "start_s": [0.0, 4.0, 0.0, 0.0, 9.0, 3.0],
        "finish_s": [3.0, 6.0, 4.0, 4.0, 10.0, 5.0],
    })  # fmt: skip
    return records, requests


def test_busy_shares_count_joined_and_overlapping_requests_once():
    found = usage(*a_run(), 2, [GPU])
    assert found["duration_s"] == 10
    assert found["cores_busy"] == pytest.approx((4 + 2) / 20)
    (device,) = found["accelerators"]
    assert device["busy"] == pytest.approx(0.5)
    assert device["share_of_queries"] == 0.5
    assert device["share_of_items"] == 0.7


def test_modelled_energy_is_idle_watts_and_what_work_adds():
    watts = Watts.parse("core=1:11,accelerator=20:120")
    energy = usage(*a_run(), 2, [GPU], watts=watts)["energy"]
    assert energy["joules"] == pytest.approx([10 * (2 * 1 + 0.6 * 10), 10 * (20 + 0.5 * 100)])
    assert energy["watts"] == pytest.approx(8 + 70)
    assert energy["queries_per_joule"] == pytest.approx(4 / 780)
    assert energy["modelled"] == ["cores", "gpu"]


def test_what_a_meter_says_is_not_modelled():
    energy = usage(*a_run(), 2, [GPU], measured={"cores": 50.0})["energy"]
    assert energy["joules"][0] == 50
    assert energy["measured"] == ["cores"]
    assert energy["modelled"] == ["gpu"]
    said = sentences(usage(*a_run(), 2, [GPU], measured={"cores": 50.0}))
    assert said[1].startswith("emulated gpu 50% busy with 50% of the queries, 70% of the items")
    assert "cores measured; gpu modelled: core 2.25 to 7.5 W" in said[2]


def test_a_run_of_nothing_used_nothing():
    records, requests = a_run()
    assert usage(records[:0], requests[:0], 2) == {}
    assert sentences({}) == []


@pytest.mark.parametrize("text", ["core", "core=1", "core=5:2", "gpu=1:2", "core=-1:2", "core=a:b"])
def test_watts_that_cannot_be_are_refused(text):
    with pytest.raises(UserError, match="write core=IDLE:BUSY"):
        Watts.parse(text)


def test_the_meter_reads_packages_and_counters_that_go_around(tmp_path):
    for number, energy in ((0, 900), (1, 100)):
        zone = tmp_path / f"intel-rapl:{number}"
        zone.mkdir()
        (zone / "energy_uj").write_text(f"{energy}000000\n")
        (zone / "max_energy_range_uj").write_text("1000000000\n")
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of package 0, counted with it
    (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("5\n")
    meter = Meter(powercap=tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("40000000\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("107000000\n")
    assert meter.joules() == {"cores": pytest.approx(140 + 7)}


def test_a_machine_without_meters_says_nothing(tmp_path):
    assert Meter(powercap=tmp_path).joules() == {}
