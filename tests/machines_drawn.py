"""What property tests of simulated machines draw: service-time laws, schedules, accelerators."""

import numpy as np
from hypothesis import strategies as st

from deeprecsys.core import Policy, Schedule
from deeprecsys.machines.accelerators import Accelerator
from deeprecsys.machines.service_time import Overhead, Profile, ServiceTime


def profiled(workers=2, levels=(1, 2)):
    """Slower when busy, noisier when small: every axis of a profile matters."""
    rng, profile = np.random.default_rng(0), Profile({"model": "toy", "workers": workers})
    for busy in levels:
        for batch in (1, 4, 16, 64):
            mean_s = (1e-4 + 1e-5 * batch) * (1 + 0.2 * busy)
            seconds = mean_s * rng.lognormal(0, 0.5 / batch, 40)
            profile = profile.with_visit((batch, busy), seconds)
    by_idle_s = ((0.0, 1e-4), (1e-6, 3e-4), (5e-3, 1e-3))
    weather = tuple(rng.uniform(0.8, 1.2, 7).tolist())
    return profile.with_overhead(Overhead(by_idle_s, 2e-4, 0.1, weather))


LAWS = {
    "constant": ServiceTime.constant(0.01),
    "linear": ServiceTime.linear(1e-3, 1e-4),
    "exponential": ServiceTime.exponential(0.02),
    "measured": ServiceTime.from_profile(profiled()),
    "measured at three levels": ServiceTime.from_profile(profiled(4, (1, 2, 4))),
}
# Whole milliseconds, so that arrivals and finishes often fall on one instant.
arrivals = st.lists(st.integers(0, 60), min_size=0, max_size=40)
policies = st.builds(Policy, batch_size=st.integers(1, 50)) | st.builds(
    Policy, batch_size=st.integers(1, 20), adaptive=st.just(True), most_items=st.integers(20, 64)
)


@st.composite
def schedules(draw):
    at = sorted(draw(arrivals))
    sizes = draw(st.lists(st.integers(0, 60), min_size=len(at), max_size=len(at)))
    return Schedule(np.array(at, float) / 1e3, np.array(sizes, np.int64))


DEVICES = {
    "fast": Accelerator("fast", ServiceTime.linear(2e-3, 1e-5), "a law"),
    "slow": Accelerator("slow", LAWS["linear"], "a law"),
    "measured": Accelerator(
        "measured", ServiceTime.from_profile(profiled(), extrapolate=True), "a profile"
    ),
}
devices = st.lists(st.sampled_from(sorted(DEVICES)), max_size=3)
offloads = st.fixed_dictionaries({
    "offload_threshold": st.integers(1, 60),
    "offload_backlog": st.none() | st.integers(1, 150),
    "workers": st.none() | st.integers(1, 3),
})  # fmt: skip
