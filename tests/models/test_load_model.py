"""Loading: weights by seed alone, too large a model refused before allocation, inputs checked."""

import numpy as np
import pytest

from deeprecsys.core import UserError, repeat_inputs
from deeprecsys.models import load_model
from deeprecsys.models import model as model_module
from deeprecsys.models.memory import available_bytes

torch = pytest.importorskip("torch")
tables = pytest.importorskip("deeprecsys.models.tables")


def test_the_same_seed_gives_the_same_scores_and_another_seed_others():
    inputs = load_model("ncf", scale=0.01).example(5, np.random.default_rng(0))
    first, again, other = (
        load_model("ncf", scale=0.01, seed=s).reference(inputs) for s in (1, 1, 2)
    )
    assert (first == again).all()
    assert (first != other).all()


def test_tables_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(tables, "BLOCK", 1000)
    monkeypatch.setattr(tables, "PIECE", 300)
    one, many = (tables.new_tables([50, 7, 90], 32, 0.5, seed=9, threads=n) for n in (1, 4))
    assert torch.equal(one, many)
    assert one.shape == (147, 32)
    assert one.min() >= -0.5
    assert one.max() < 0.5
    assert abs(float(one.std()) - 1 / np.sqrt(12)) < 0.01


def test_no_table_or_block_repeats_another(monkeypatch):
    monkeypatch.setattr(tables, "BLOCK", 320)
    rows = tables.new_tables([20, 20], 32, 1.0, seed=0)
    assert len(torch.unique(rows, dim=0)) == 40


def test_a_model_that_does_not_fit_is_refused_with_the_scale_that_would(monkeypatch):
    monkeypatch.setattr(model_module, "available_bytes", lambda: 2_500_000_000)
    monkeypatch.setattr(model_module, "_build", lambda *_: pytest.fail("it allocated"))
    with pytest.raises(UserError) as error:
        load_model("dlrm-rmc1")
    assert str(error.value) == (
        "dlrm-rmc1 at scale 1 needs 5.1 GB of memory and 2.5 GB are free; "
        "the largest scale that fits is 0.36"
    )


def test_the_advised_scale_is_accepted(monkeypatch):
    monkeypatch.setattr(model_module, "available_bytes", lambda: 1_020_000_000)
    with pytest.raises(UserError, match=r"the largest scale that fits is 0\.0048"):
        load_model("dlrm-rmc1")
    assert load_model("dlrm-rmc1", scale=0.0048).table_bytes < 20_000_000


def test_where_not_even_the_weights_fit_no_scale_is_advised(monkeypatch):
    monkeypatch.setattr(model_module, "available_bytes", lambda: 1000)
    with pytest.raises(UserError, match="no scale fits"):
        load_model("ncf", scale=1e-3)
    assert load_model("ncf", scale=1e-3, check_memory=False).tasks == 1


@pytest.mark.parametrize("group", ["", "system.slice/docker-1.scope"])
def test_the_limit_of_a_container_or_of_one_around_it_counts_and_page_cache_does_not(
    tmp_path, group
):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/system.slice/docker-1.scope/app\n")
    folder = tmp_path / "sys/fs/cgroup" / group
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text("5000\n")
    (folder / "memory.current").write_text("4000\n")
    (folder / "memory.stat").write_text("anon 3000\ninactive_file 900\n")
    assert available_bytes(tmp_path) == 1900
    (folder / "memory.max").write_text("max\n")
    assert available_bytes(tmp_path) > 5000


@pytest.mark.parametrize("seed", [-1, 0.5, None])
def test_a_seed_that_is_no_natural_number_is_refused(seed):
    with pytest.raises(UserError, match="seed must be a whole number"):
        load_model("ncf", scale=1e-3, seed=seed)


class TestInputsFromOutside:
    @pytest.fixture
    def model(self):
        return load_model("ncf", scale=1e-3)  # 140 users, 28 items

    @pytest.fixture
    def inputs(self, model):
        return model.example(4, np.random.default_rng(0))

    def test_what_fits_is_counted(self, model, inputs):
        assert model.check(inputs) == 4

    def test_what_belongs_to_the_user_has_one_row_or_one_a_candidate(self):
        model = load_model("din", scale=1e-4, query_inputs=True)
        for n in (0, 1, 4):
            inputs = model.example(n, np.random.default_rng(0))
            assert {len(inputs[name]) for name in model.spec.of_user} == {1}
            assert len(inputs["context"]) == n
            assert model.check(inputs) == n
            repeated = repeat_inputs(model.inputs, inputs, n)
            assert model.check(repeated | {"user": inputs["user"]}) == n
        with pytest.raises(UserError, match=r"user must be INT32 \[4, 1\] or \[1, 1\], not int32"):
            model.check(inputs | {"user": np.zeros((2, 1), np.int32)})
        with pytest.raises(UserError, match=r"context must be INT32 \[4, 1\], not"):
            model.check(inputs | {"context": inputs["context"][:1]})
        for name in ("user", "behaviour_items"):
            for n in (0, 1, 4):
                wrong = model.example(n, np.random.default_rng(0))
                wrong[name][0, -1] = -1
                with pytest.raises(UserError, match=f"input {name} has id -1"):
                    model.check(wrong)

    def test_a_model_without_a_users_inputs_refuses_query_inputs(self):
        with pytest.raises(UserError, match="ncf has no inputs that belong to the user alone"):
            load_model("ncf", scale=1e-3, query_inputs=True)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("query_inputs", [False, True])
    def test_a_value_that_is_no_finite_number_is_refused(self, bad, query_inputs):
        model = load_model("dlrm-rmc1", scale=1e-4, query_inputs=query_inputs)
        inputs = model.example(4, np.random.default_rng(0))
        inputs["dense"][:] = np.finfo(np.float32).max  # finite, but their sum is not
        assert model.check(inputs) == 4
        inputs["dense"][0, 3] = bad
        with pytest.raises(UserError, match="input dense has a value that is infinite or not a"):
            model.check(inputs)

    @pytest.mark.parametrize("bad", [-1, 28, 2**31 - 1])
    def test_an_id_outside_its_table_is_refused(self, model, inputs, bad):
        inputs["item"][2, 0] = bad
        with pytest.raises(
            UserError, match=f"input item has id {bad}; its table's ids are 0 to 27"
        ):
            model.check(inputs)

    def test_missing_extra_and_misshapen_inputs_are_named(self, model, inputs):
        with pytest.raises(UserError, match="ncf lacks input item"):
            model.check({"user": inputs["user"]})
        with pytest.raises(UserError, match="ncf has no input age"):
            model.check(inputs | {"age": inputs["user"]})
        with pytest.raises(
            UserError, match=r"input item must be INT32 \[4, 1\], not int32 \[3, 1\]"
        ):
            model.check(inputs | {"item": inputs["item"][:3]})
        with pytest.raises(UserError, match="not int64"):
            model.check(inputs | {"item": inputs["item"].astype(np.int64)})

    def test_many_items_and_read_only_arrays_are_scored_too(self, model):
        inputs = model.example(600, np.random.default_rng(0))
        for array in inputs.values():
            array.setflags(write=False)
        scores = model.reference(inputs)
        last = model.reference({name: array[-1:] for name, array in inputs.items()})
        assert scores.shape == (600, 1)
        assert np.allclose(scores[-1:], last, atol=1e-6)
