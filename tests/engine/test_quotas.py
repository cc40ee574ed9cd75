"""What a container lets a process use of the processor, by a fake root folder."""

import pytest

from deeprecsys.engine import doctor, quotas, topology
from deeprecsys.engine.quotas import Quota, said, tightest

V1 = "sys/fs/cgroup/cpu,cpuacct"
V2 = "sys/fs/cgroup"
DEEP = {"proc/self/cgroup": "0::/system.slice/docker-1.scope/app\n"}
DEEP_V1 = {"proc/self/cgroup": "5:memory:/x\n4:cpu,cpuacct:/docker/1/app\n0::/\n"}


def rooted(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({f"{V2}/cpu.max": "150000 100000\n"}, 1.5),
        ({f"{V2}/cpu.max": "max 100000\n"}, None),
        ({f"{V2}/cpu.max": "200000\n"}, 2.0),
        ({**DEEP, f"{V2}/system.slice/docker-1.scope/app/cpu.max": "50000 100000"}, 0.5),
        ({**DEEP, f"{V2}/system.slice/docker-1.scope/cpu.max": "300000 100000"}, 3.0),
        (
            {
                **DEEP,
                f"{V2}/system.slice/docker-1.scope/app/cpu.max": "400000 100000",
                f"{V2}/system.slice/docker-1.scope/cpu.max": "max 100000",
                f"{V2}/system.slice/cpu.max": "250000 100000",
            },
            2.5,
        ),
        ({**DEEP, f"{V2}/cpu.max": "100000 100000"}, 1.0),  # the container's own, as its root
        ({"proc/self/cgroup": "0::/../..\n", f"{V2}/cpu.max": "100000 50000"}, 2.0),
        ({"proc/self/cgroup": "0::/a\n", f"{V2}/unified/a/cpu.max": "100000 50000"}, 2.0),
        ({f"{V1}/cpu.cfs_quota_us": "150000", f"{V1}/cpu.cfs_period_us": "50000"}, 3.0),
        ({f"{V1}/cpu.cfs_quota_us": "-1", f"{V1}/cpu.cfs_period_us": "50000"}, None),
        (
            {
                **DEEP_V1,
                f"{V1}/docker/1/app/cpu.cfs_quota_us": "-1",
                f"{V1}/docker/1/cpu.cfs_quota_us": "120000",
                f"{V1}/docker/1/cpu.cfs_period_us": "100000",
            },
            1.2,
        ),
    ],
)
def test_the_tightest_limit_of_the_groups_and_those_above_them_counts(tmp_path, files, cores):
    assert tightest(rooted(tmp_path, files)) == Quota(cores)


@pytest.mark.parametrize(
    "text", ["", "lots", "max lots", "1 2 3", "1e5 1e5", "100000 0", "0", "-5"]
)
def test_what_is_not_understood_is_ignored_and_told(tmp_path, text):
    files = {**DEEP, f"{V2}/system.slice/cpu.max": text, f"{V2}/cpu.max": "100000 100000"}
    found = tightest(rooted(tmp_path, files))
    assert found == Quota(1.0, ("/sys/fs/cgroup/system.slice/cpu.max",))


def test_a_file_that_cannot_be_read_is_ignored_and_told_by_the_doctor(tmp_path, monkeypatch):
    (tmp_path / V2 / "cpu.max").mkdir(parents=True)  # not even root can read a folder
    monkeypatch.setattr(quotas, "ROOT", tmp_path)
    assert topology.cpu_quota() is None
    assert topology.usable_cores()
    found = doctor.cores({})
    assert found.level == "note"
    assert "/sys/fs/cgroup/cpu.max" in found.cost
    assert "--workers" in found.mend


NESTED = {
    "proc/self/cgroup": "0::/kubepods/pod7/server\n",
    f"{V2}/kubepods/pod7/server/cpu.max": "400000 100000",
    f"{V2}/kubepods/pod7/cpu.max": "75000 50000",
    f"{V2}/kubepods/cpu.max": "max 100000",
}


def test_a_quota_says_whose_it_is_and_its_period(tmp_path):
    found = tightest(rooted(tmp_path, NESTED))
    assert (found.cores, found.period_s, found.file) == (
        1.5, 0.05, "/sys/fs/cgroup/kubepods/pod7/cpu.max",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("workers", "quota", "words"),
    [
        (2, Quota(), "no quota"),
        (2, Quota(2.0), "quota of 2 cores: 2 workers, a core each"),
        (1, Quota(1.5), "quota of 1.5 cores: 1 worker, 0.5 of a core left for reading and"
                        " answering"),
        (2, Quota(1.5), "quota of 1.5 cores: 2 workers want 0.5 of a core more; busy, all stop for"
                        " 25 of every 100 ms"),
        (2, Quota(1.5, period_s=0.02), "quota of 1.5 cores: 2 workers want 0.5 of a core more;"
                                       " busy, all stop for 5 of every 20 ms"),
        (1, Quota(0.4), "quota of 0.4 of a core: 1 worker wants 0.6 of a core more; busy, all stop"
                        " for 60 of every 100 ms"),
        (3, Quota(8.25), "quota of 8.25 cores: 3 workers, 5.25 cores left for reading and"
                         " answering"),
    ],
)  # fmt: skip
def test_what_a_quota_means_for_whole_workers_is_said(workers, quota, words):
    assert said(workers, quota) == words


def test_of_one_and_a_half_cores_of_a_parent_group_one_worker_is_made_and_half_a_core_told(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(quotas, "ROOT", rooted(tmp_path, NESTED))
    monkeypatch.setattr(topology.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert len(topology.usable_cores()) == 1
    found = doctor.cores({})
    assert found.level == "note"
    assert found.value.startswith("1 usable of ")
    assert found.value.endswith(
        "quota of 1.5 cores: 1 worker, 0.5 of a core left for reading and answering"
        " (/sys/fs/cgroup/kubepods/pod7/cpu.max)"
    )
    assert "0.5 of a core is none's; 2 workers want 0.5 of a core more" in found.cost
