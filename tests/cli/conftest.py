"""A folder of its own for each test; one run of `bench` and of a simulated `tune` for all."""

import pytest
from small import SMALL

from deeprecsys.cli.main import call


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def bench_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "bench"
    arguments = ["bench", "ncf", "--qps", "200", "--duration-s", "1", *SMALL]
    assert call([*arguments, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def tune_folder(tmp_path_factory):
    """Of a simulated machine: the same rates each time, whatever else this one has to do."""
    folder = tmp_path_factory.mktemp("runs") / "tune"
    arguments = ["simulate", "--service", "linear:1e-4,1.5e-5", "--workers", "4", "--tune"]
    assert call([*arguments, "--method", "static", "--sla-ms", "50", "--out", str(folder)]) == 0
    return folder
