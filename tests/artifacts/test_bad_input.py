"""What is given to `open_model` by mistake or by malice: one line, whatever it is."""

import json
import os
import re
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from deeprecsys.artifacts import open_model
from deeprecsys.cli.main import call
from deeprecsys.core import UserError
from own_models import FOLDERS, TOML, example, torchscript_folder


def artifact_of(folder):
    return next(p for p in folder.glob("model.*") if p.suffix != ".toml")


def refusal(path):
    """The one line that refuses it."""
    with pytest.raises(UserError) as raised:
        open_model(path, trust=True)
    line = str(raised.value)
    assert "\n" not in line
    return line


def said_of(path):
    """The line that refuses it; nothing of what is a model."""
    try:
        open_model(path, trust=True)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("form", FOLDERS)
def test_a_file_that_is_cut_off_or_damaged_is_refused_in_one_line_or_still_a_model(tmp_path, form):
    file = artifact_of(FOLDERS[form](tmp_path / "own"))
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    for share in (0, 0.01, 0.3, 0.6):
        file.write_bytes(whole[: int(share * len(whole))])
        assert refusal(tmp_path / "own")
    for junk in (bytes(4096), rng.bytes(4096)):
        file.write_bytes(junk)
        assert refusal(file)
    if form == "python":  # which is run, and would be whatever it says
        return
    for wrong in (1, 2, 2, 20, 20, 20):
        data = np.frombuffer(whole, np.uint8).copy()
        data[rng.integers(0, len(data), wrong)] = rng.integers(0, 128, wrong)
        file.write_bytes(data.tobytes())
        assert "\n" not in said_of(file)


def test_a_lightgbm_file_with_a_damaged_tree_does_not_end_the_process(tmp_path):
    """LightGBM reads trees by several threads, in which what it throws ends the process."""
    file = artifact_of(FOLDERS["lightgbm"](tmp_path / "own"))
    text = file.read_text()
    file.write_text(text.replace("Tree=5", "Tre=5"))
    assert "it holds 9 of 10 trees" in refusal(file)
    file.write_text(text.replace("num_leaves=", "num_leave=", 1))
    assert "no LightGBM model that can be read" in refusal(file)
    child = re.search("left_child=([0-9]+) ", text)
    file.write_text(text.replace(child[0], "left_child=0 ", 1))  # a node under itself
    assert "tree 0 is damaged" in refusal(file)


def a_folder(folder):
    (folder / "model.pt").unlink()
    (folder / "model.pt").mkdir()


def a_link_to_nothing(folder):
    (folder / "model.pt").unlink()
    (folder / "model.pt").symlink_to(folder / "gone.pt")


def a_link_to_itself(folder):
    (folder / "model.pt").unlink()
    (folder / "model.pt").symlink_to("model.pt")


def a_pipe(folder):
    (folder / "model.pt").unlink()
    os.mkfifo(folder / "model.pt")


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (a_folder, "holds no model"),
        (a_link_to_nothing, "a link to nothing: model.pt"),
        (a_link_to_itself, "a link to nothing: model.pt"),
        (a_pipe, "holds no model"),
    ],
)
def test_what_is_no_file_is_no_model(tmp_path, make, line):
    make(torchscript_folder(tmp_path / "own"))
    assert line in refusal(tmp_path / "own")


@pytest.mark.parametrize("form", FOLDERS)
def test_a_folder_or_a_file_may_be_reached_by_a_link(tmp_path, form):
    folder = FOLDERS[form](tmp_path / "own")
    (tmp_path / "link").symlink_to(folder)
    assert open_model(tmp_path / "link", trust=True).name == "own"
    (tmp_path / "alone").mkdir()
    for file in (artifact_of(folder), folder / "model.toml"):
        (tmp_path / "alone" / file.name).symlink_to(file)
    assert open_model(tmp_path / "alone", trust=True).name == "alone"


@contextmanager
def as_nobody():
    """Whoever may read and write everything may not."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.fixture
def everybodys():
    """A folder that others may enter; pytest's own may not be."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("what", [".", "model.pt", "model.toml", "samples.jsonl"])
def test_what_may_not_be_read_is_named(everybodys, what):
    folder = torchscript_folder(everybodys / "own")
    (folder / "samples.jsonl").write_text(json.dumps(GOOD))
    (folder / what).chmod(0)
    with as_nobody():
        assert "ermission denied" in refusal(folder)
    (folder / what).chmod(0o755)


def test_a_model_toml_that_may_not_be_written_is_told(everybodys, capsys):
    folder = FOLDERS["lightgbm"](everybodys / "own")
    (folder / "model.toml").unlink()
    folder.chmod(0o555)
    with as_nobody():
        assert call(["inspect", str(folder), "--write"]) == 2
    error = capsys.readouterr().err
    assert "ermission denied" in error
    assert "Traceback" not in error


USER, ITEM = "[inputs.user]\n", "[inputs.item]\n"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("target", "name = 'a/b'\ntarget", "name is letters, digits"),
        ("target", "name = ''\ntarget", "name is letters, digits"),
        ("sla_ms = 50", "sla_ms = -5", "model.toml: "),
        ("sla_ms = 50", "sla_ms = nan", "model.toml: "),
        ("sla_ms = 50", "sla_ms = 50, percentile = 101", "model.toml: "),
        ("target", "sizes = 'nonsense'\ntarget", "model.toml: unknown sizes 'nonsense'"),
        ("target", "sizes = 'file:gone.txt'\ntarget", "gone.txt"),
        ("padding = 0", f"padding = {1 << 70}", "do not fit input item, INT64"),
        ("shape = [3]", "shape = [3]\npadding = 1", "input dense has no ids, so no padding"),
        ("shape = [3]", "shape = [3]\nvalues = 'normal:0,-1'", "input dense: normal:.*at least 0"),
        ("shape = [3]", "shape = [3]\nvalues = 'nope'", "input dense: its values are normal:M,D"),
        (USER, f"{USER}values = 'nope'\n", "input user: unknown indices 'nope'"),
        (ITEM, f"{ITEM}bag = 'item'\n", "input item: bag names the input .* not itself"),
        (ITEM, f"{ITEM}lengths = 'uniform:0,5'\n", "input item: lengths are of an input"),
    ],
)
def test_a_contradiction_in_model_toml_names_its_place(tmp_path, old, new, line):
    assert re.search(line, refusal(torchscript_folder(tmp_path / "own", TOML.replace(old, new, 1))))


GOOD = {"user": [[3]], "item": [[1], [2]], "dense": [[1, 2, 3], [4, 5, 6]]}
BIG = (1 << 53) + 1
INFER = {"name": "user", "datatype": "INT64", "shape": [1, 1]}


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"user": None}, "row 2 has no input user"),
        ({"item": [[1], [None]]}, "row 2: input item: None is no INT64"),
        ({"item": [["a"], [1]]}, "row 2: input item: 'a' is no INT64"),
        ({"item": {"a": 1}}, "row 2: input item: .* is no INT64"),
        ({"item": [[1], [1.5]]}, "row 2: input item: 1.5 does not fit INT64"),
        ({"item": [[1], [4000]]}, "row 2: input item has id 4000; its ids are 0 to 39"),
        ({"item": [[1], [1 << 63]]}, f"row 2: input item: {1 << 63} is no INT64"),
        ({"item": [[BIG], [1.0]]}, "row 2: input item: .* recorded as a floating number"),
        ({"dense": [[1, 2, None], [1, 2, 3]]}, "row 2: input dense has nan in row 1: .*finite"),
        ({"dense": [[1, 2], [3, 4]]}, r"row 2: input dense must be FP32 \[2, 3\]"),
        ({"dense": [[1, 2, 3]]}, r"row 2: input dense must be FP32 \[2, 3\], not float32 \[1, 3\]"),
        ({"dense": [[1, 2, 3], [4]]}, "row 2: the rows of dense are of different lengths"),
        ({"inputs": [INFER]}, "row 2: an input lacks its data"),
    ],
)
def test_a_recorded_query_that_is_none_of_the_model_s_is_named(tmp_path, row, line):
    folder = torchscript_folder(tmp_path / "own")
    (folder / "samples.jsonl").write_text(f"{json.dumps(GOOD)}\n{json.dumps(GOOD | row)}")
    assert re.search(line, refusal(folder))


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"size": [2.0]}, "size is one whole number a query"),
        ({"size": [[2]]}, "size is one whole number a query"),
        ({"size": [-2, 4]}, "size is one whole number a query"),
        ({"size": [0]}, "samples.npz"),
        ({"size": [2], "user": 3}, "user is one number, not an array"),
        ({"size": [2], "dense": np.full((2, 3), np.inf)}, "row 1: input dense has inf in row 1"),
        ({"size": [2], "item": [[1.0], [np.nan]]}, "row 1: input item: nan does not fit INT64"),
    ],
)
def test_recorded_arrays_that_make_no_queries_are_refused(tmp_path, arrays, line):
    folder = torchscript_folder(tmp_path / "own")
    np.savez(folder / "samples.npz", **(GOOD | arrays))
    assert re.search(line, refusal(folder))


def test_whole_numbers_of_64_bits_are_recorded_exactly(tmp_path):
    """JSON has no types, and numpy makes doubles of what exceeds INT64."""
    code = "class Model:\n    def __call__(self, x):\n        return x[:, 0] % 7"
    toml = '[inputs.x]\ndatatype = "UINT64"\nshape = [1]\n'
    (tmp_path / "model.toml").write_text(toml)
    (tmp_path / "model.py").write_text(code)
    ids = [BIG, (1 << 63) + 1, (1 << 64) - 1]
    (tmp_path / "samples.jsonl").write_text(json.dumps({"x": [[i] for i in ids]}))
    model = open_model(tmp_path, trust=True)
    assert model.recorded[0]["x"].ravel().tolist() == ids
    assert model.reference(model.recorded[0]).ravel().tolist() == [i % 7 for i in ids]


@pytest.mark.parametrize("line", ["x += 1", "x[0] = 0"])
def test_a_model_that_writes_into_its_inputs_is_refused(tmp_path, line):
    """They are the query's, and other slices read them."""
    code = f"class Model:\n    def __call__(self, x):\n        {line}\n        return x[:, 0]"
    (tmp_path / "model.toml").write_text('[inputs.x]\ndatatype = "FP32"\nshape = [1]\n')
    (tmp_path / "model.py").write_text(code)
    assert "changes its input x in place" in refusal(tmp_path)


def test_missing_values_are_recorded_for_rankers_of_trees(tmp_path):
    folder = FOLDERS["lightgbm"](tmp_path / "own")
    (folder / "samples.jsonl").write_text(json.dumps({"features": [[1, 2, None, 4, 5]]}))
    assert np.isnan(open_model(folder).recorded[0]["features"][0, 2])


def test_recorded_queries_give_the_law_of_sizes_unless_one_is_declared(tmp_path):
    folder = torchscript_folder(tmp_path / "own", TOML.replace("target", "# target"))
    inputs = example(60)
    inputs["user"] = inputs["user"][:4]
    np.savez(folder / "samples.npz", size=[10, 0, 20, 30], **inputs)
    model = open_model(folder)
    assert model.sizes == "each:10,20,30"
    assert re.search("4 queries of .*, and their sizes", model.inputs_from)
    assert any(f.what.startswith("sizes as recorded: 10 to 30") for f in model.facts)
    (folder / "model.toml").write_text(f"sizes = 'fixed:7'\n{TOML}")
    model = open_model(folder)
    assert model.sizes == "fixed:7"
    assert "sizes" not in model.inputs_from


def test_a_file_of_sizes_lies_beside_the_model(tmp_path):
    folder = torchscript_folder(tmp_path / "own", f"sizes = 'file:sizes.txt'\n{TOML}")
    (folder / "sizes.txt").write_text("5\n6\n")
    assert open_model(folder).sizes == f"file:{folder / 'sizes.txt'}"
