"""Emulated accelerators: published speed-ups over a profile, and profiles."""

import numpy as np
import pytest

from deeprecsys.core import SLA, Policy, UserError
from deeprecsys.machines.accelerators import accelerator, speedups
from deeprecsys.machines.service_time import Profile, ServiceTime
from deeprecsys.models import NAMES
from deeprecsys.simulation import Simulator
from deeprecsys.tuning import tune
from deeprecsys.workload import Workload

pytestmark = pytest.mark.usefixtures("short_simulations")


def profiled(model="dlrm-rmc3"):
    profile = Profile({"model": model, "workers": 2})
    for batch in (1, 16, 256, 1024):
        for busy in (1, 2):
            seconds = np.full(4, (2e-4 + 4e-5 * batch) * (1 + 0.1 * (busy - 1)))
            profile = profile.with_visit((batch, busy), seconds)
    return profile


def test_every_model_has_a_published_speed_up():
    for name in NAMES:
        batch_sizes, speedup = speedups("gtx-1080ti", name)
        assert batch_sizes.tolist() == [1, 4, 16, 64, 256, 1024]
        assert (speedup > 0).all()
    assert speedups("gtx-1080ti", "dlrm-rmc3")[1][-1] == 3.13


def test_a_speed_up_is_over_one_core_of_the_profile():
    found = accelerator("gtx-1080ti", "dlrm-rmc3", profiled())
    one_core_s = 2e-4 + 4e-5 * np.array([1.0, 256.0, 1024.0])
    np.testing.assert_allclose(
        found.service(np.array([1.0, 256.0, 1024.0])), one_core_s / [0.70, 3.05, 3.13]
    )
    assert found.emulated


def test_a_profile_is_an_accelerator(tmp_path):
    profiled().save(tmp_path / "p.json")
    found = accelerator(f"emulated:{tmp_path / 'p.json'}", "dlrm-rmc3", None)
    assert found.service(np.array([256.0]))[0] == pytest.approx(1.1 * (2e-4 + 4e-5 * 256))
    with pytest.raises(UserError, match="is of model dlrm-rmc3, not ncf"):
        accelerator(f"emulated:{tmp_path / 'p.json'}", "ncf", None)


@pytest.mark.parametrize(
    ("text", "model", "profile", "says"),
    [
        ("a100", "ncf", profiled("ncf"), "unknown accelerator 'a100'; known: gtx-1080ti"),
        ("emulated", "ncf", profiled("ncf"), "unknown accelerator"),
        ("gtx-1080ti", None, profiled(), "give a model"),
        ("gtx-1080ti", "ncf", None, "give a model"),
        ("gtx-1080ti", "mine", profiled("mine"), "no speed-up of gtx-1080ti was published"),
        ("emulated:nosuch.json", None, None, "no file nosuch.json"),
    ],
)
def test_what_cannot_be_emulated_is_refused(text, model, profile, says):
    with pytest.raises(UserError, match=says):
        accelerator(text, model, profile)


def test_an_accelerator_needs_a_law_that_is_no_lottery():
    from deeprecsys.machines.accelerators import Accelerator

    lottery = Accelerator("x", ServiceTime.exponential(1.0), "a law")
    with pytest.raises(UserError, match="not exponential"):
        Simulator(ServiceTime.constant(1.0), 1, accelerators=[lottery])


@pytest.mark.parametrize("method", ["hill-climb", "exhaustive"])
def test_tuning_finds_an_interior_threshold_and_never_loses_by_the_device(method):
    """Two cores and a device three times as fast as one: five cores' worth at best."""
    profile = profiled()
    law = ServiceTime.from_profile(profile)
    device = accelerator("gtx-1080ti", "dlrm-rmc3", profile)
    alone = tune(Simulator(law, 2), Workload(), SLA(0.1), method)
    both = tune(Simulator(law, 2, accelerators=[device]), Workload(), SLA(0.1), method)
    assert both.baseline.policy.offload_threshold is None
    threshold = both.best.policy.offload_threshold
    assert threshold is not None
    assert 100 < threshold <= 700
    gain = both.best.capacity.rate_qps / alone.best.capacity.rate_qps
    assert 1.3 < gain < 2.7


def test_a_useless_device_is_left_alone():
    device = accelerator("gtx-1080ti", "dlrm-rmc3", profiled())
    from deeprecsys.core import replace

    slow = replace(device, service=ServiceTime.linear(1.0, 0.1))
    system = Simulator(ServiceTime.from_profile(profiled()), 2, accelerators=[slow])
    best = tune(system, Workload(), SLA(0.1)).best.policy
    assert best == Policy(best.batch_size)
