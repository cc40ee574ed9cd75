"""The specifications: what Table I says, what the listing reads, and no torch to read it."""

import subprocess
import sys

import numpy as np
import pytest

from deeprecsys.core import UserError, Work
from deeprecsys.models import SPECS, VARIANTS, get_spec


@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda s: f"{s.name}/{s.variant}")
class TestEverySpecification:
    def test_dense_comes_first_and_ids_are_int32(self, spec):
        inputs = spec.inputs()
        assert [i.name for i in inputs if i.datatype == "FP32"] == ["dense"] * bool(spec.dense)
        assert inputs[0].datatype == "FP32" or not spec.dense
        assert all(i.scope == "candidate" for i in inputs)
        assert all(i.rows for i in inputs if i.datatype == "INT32")
        assert len({i.name for i in inputs}) == len(inputs)

    def test_tables_that_share_ids_have_equal_rows_and_none_is_unused(self, spec):
        used = set()
        for feature in spec.features:
            assert len({spec.table(name).rows for name in feature.tables}) == 1
            used |= set(feature.tables)
        assert used == {table.name for table in spec.tables}

    def test_the_work_of_a_candidate_adds_up(self, spec):
        work = spec.work()
        assert work.table_bytes == work.lookups * spec.width * 4
        assert work.flops > 0
        assert spec.bytes_per_query(10) == 10 * (work.table_bytes + work.input_bytes)
        each = spec.work(query_inputs=True)
        assert all(getattr(each, f) <= getattr(work, f) for f in Work.__slots__)
        assert (each == work) == (not spec.of_user)
        assert spec.bytes_per_query(1, query_inputs=True) == spec.bytes_per_query(1)

    def test_says_where_its_numbers_come_from(self, spec):
        assert spec.operators
        assert {"architecture", "target"} <= {what for what, _ in spec.sources}


def test_the_targets_are_those_of_table_2():
    targets = {name: round(spec.target.latency_s * 1e3) for (name, _), spec in SPECS.items()}
    assert targets == {
        "ncf": 5,
        "wnd": 25,
        "mt-wnd": 25,
        "dlrm-rmc1": 100,
        "dlrm-rmc2": 400,
        "dlrm-rmc3": 100,
        "din": 100,
        "dien": 35,
    }


def test_the_tables_have_the_published_sizes():
    bytes_of = {name: get_spec(name).table_bytes() for name, _ in SPECS}
    assert bytes_of["dlrm-rmc1"] == 8 * 4_000_000 * 32 * 4
    assert bytes_of["dlrm-rmc2"] == 32 * 500_000 * 32 * 4
    assert bytes_of["dlrm-rmc3"] == 10 * 2_000_000 * 32 * 4
    assert bytes_of["mt-wnd"] == bytes_of["dien"] == (41 * 500_000 + 2 * 5_000_000) * 32 * 4


def test_dlrm_reads_what_table_1_says():
    rmc1 = get_spec("dlrm-rmc1")
    assert rmc1.work().lookups == 8 * 80
    assert [(i.name, i.shape) for i in rmc1.inputs()][:2] == [("dense", (256,)), ("table_0", (80,))]
    assert get_spec("dlrm-rmc2").work().lookups == 32 * 80
    assert get_spec("dlrm-rmc3").inputs()[0].shape == (2560,)


def test_a_hand_counted_model_has_the_stated_arithmetic():
    layers = (128, 256), (256, 256), (256, 128), (192, 1)
    assert get_spec("ncf").work().flops == sum(2 * a * b for a, b in layers) + 64


def test_rows_scale_and_never_vanish():
    spec = get_spec("ncf")
    assert [i.rows for i in spec.inputs(0.5)] == [70_000, 14_000]
    assert [i.rows for i in spec.inputs(1e-9)] == [1, 1]
    assert spec.table_bytes(1e-9) == 4 * 64 * 4


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf"), "1"])
def test_a_scale_that_is_no_positive_number_is_refused(scale):
    with pytest.raises(UserError, match="scale must be a positive number"):
        get_spec("ncf").check_scale(scale)


def test_a_scale_beyond_int32_ids_is_refused_with_the_largest():
    with pytest.raises(UserError, match="largest scale is 215"):
        get_spec("din").check_scale(1000)


def test_an_unknown_name_is_answered_with_the_closest_and_all_known():
    with pytest.raises(UserError, match=r"unknown model 'dlrm-rm1'; did you mean dlrm-rmc1\?") as e:
        get_spec("dlrm-rm1")
    assert all(name in str(e.value) for name, _ in SPECS)
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="known: paper, authors-code"):
        get_spec("ncf", "mine")
    assert len(SPECS) == 8 * len(VARIANTS)


def test_reading_specifications_does_not_import_torch():
    code = (
        "import sys, deeprecsys.models as m; "
        "[s.parameters() for s in m.SPECS.values()]; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_example_inputs_follow_the_law_they_are_given():
    pytest.importorskip("torch")
    from deeprecsys.models import load_model

    model = load_model("dlrm-rmc3", scale=1e-5)
    inputs = model.example(3, np.random.default_rng(0), lambda rng, rows, shape: np.full(shape, 4))
    assert list(inputs) == [i.name for i in model.inputs]
    assert inputs["dense"].shape == (3, 2560)
    assert inputs["dense"].dtype == np.float32
    assert inputs["table_9"].dtype == np.int32
    assert (inputs["table_9"] == 4).all()
    uniform = model.example(50, np.random.default_rng(0))["table_0"]
    assert uniform.min() == 0
    assert uniform.max() == model.inputs[1].rows - 1
