"""The hash of weights: other for other weights, the same for every execution of the same."""

import numpy as np
import pytest

from deeprecsys.artifacts import open_model, weights
from deeprecsys.artifacts.weights import weights_hash
from deeprecsys.core import Execution
from deeprecsys.executions import executed
from deeprecsys.models import NAMES, load_model
from own_models import FOLDERS


@pytest.mark.parametrize("name", NAMES)
def test_every_execution_has_the_hash_of_the_exact_model(name):
    model = load_model(name, scale=1e-4)
    said = weights_hash(model)
    assert len(said) == 16
    assert weights_hash(load_model(name, scale=1e-4)) == said
    assert weights_hash(load_model(name, scale=1e-4, rows="fp16")) == said
    assert weights_hash(executed(model, Execution(rows="int8", layers="int8"))) == said


def test_other_weights_have_another():
    models = [
        load_model("dlrm-rmc1", scale=1e-4),
        load_model("dlrm-rmc1", scale=2e-4),
        load_model("dlrm-rmc1", scale=1e-4, seed=1),
        load_model("dlrm-rmc2", scale=1e-4),
        load_model("ncf", scale=1e-4),
    ]
    assert len({weights_hash(model) for model in models}) == len(models)


def test_of_a_users_own_it_is_the_files(tmp_path):
    folder = FOLDERS["lightgbm"](tmp_path / "own")
    said = weights_hash(open_model(folder))
    (folder / "model.toml").write_text("target = {sla_ms = 20}\n")
    assert weights_hash(open_model(folder)) == said, "what is declared is no weight"
    text = (folder / "model.txt").read_text()
    at = text.index(" ", text.index("leaf_value=")) - 1  # a digit of a leaf, for another
    other = text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :]
    (folder / "model.txt").write_text(other)
    assert weights_hash(open_model(folder)) != said


def test_weights_beside_the_file_count(tmp_path):
    class Own:
        path = tmp_path / "large.onnx"

    Own.path.write_bytes(b"graph")
    alone = weights_hash(Own)
    (tmp_path / "large.onnx.data").write_bytes(b"weights")
    assert weights_hash(Own) != alone


def test_of_a_large_file_pieces_all_over_it_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "_WHOLE", 1 << 16)
    monkeypatch.setattr(weights, "_PIECES", 64)

    class Own:
        path = tmp_path / "large.bin"

    content = np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8)
    Own.path.write_bytes(content.tobytes())
    said = weights_hash(Own)
    for at in (0, len(content) - 1):
        content[at] ^= 1
        Own.path.write_bytes(content.tobytes())
        assert weights_hash(Own) != said
        content[at] ^= 1
    began = content.tobytes()
    Own.path.write_bytes(began + b"\0")
    assert weights_hash(Own) != said, "the size counts"
