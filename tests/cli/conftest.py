"""A folder of its own for each test; one run of `bench` and of `tune` for all."""

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
    folder = tmp_path_factory.mktemp("runs") / "tune"
    arguments = ["tune", "ncf", "--budget-s", "5", "--sla-ms", "50", "--method", "static"]
    assert call([*arguments, *SMALL, "--out", str(folder)]) == 0
    return folder
