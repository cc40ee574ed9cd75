"""Small models of users, and folders that hold them."""

import warnings

import numpy as np
import torch

USERS, ITEMS, WIDTH = 50, 40, 4

TOML = """
target = {sla_ms = 50}
[inputs.user]
scope = "query"
ids = 50
datatype = "INT64"
shape = [1]
[inputs.item]
ids = 40
padding = 0
datatype = "INT64"
shape = [1]
[inputs.dense]
datatype = "FP32"
shape = [3]
"""


class Ranker(torch.nn.Module):
    """A user's row, an item's, three features; the score is [N, 1]."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.users = torch.nn.Embedding(USERS, WIDTH)
        self.items = torch.nn.Embedding(ITEMS, WIDTH)
        self.top = torch.nn.Sequential(
            torch.nn.Linear(WIDTH + 3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)
        )

    def forward(self, user, item, dense):
        crossed = self.users(user[:, 0]) * self.items(item[:, 0])
        return torch.sigmoid(self.top(torch.cat([crossed, dense], 1)))


def example(n, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "user": rng.integers(0, USERS, (n, 1)),
        "item": rng.integers(0, ITEMS, (n, 1)),
        "dense": rng.standard_normal((n, 3)).astype(np.float32),
    }


def traced(module, *inputs, path):
    """Saves it as TorchScript."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.jit.trace(module.eval(), inputs, check_trace=False).save(str(path))


def scripted(module, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module).save(str(path))


def torchscript_folder(folder, toml=TOML, module=None):
    """The ranker as TorchScript, with what TorchScript does not say."""
    folder.mkdir(parents=True, exist_ok=True)
    given = [torch.from_numpy(array) for array in example(7).values()]
    traced(module or Ranker(), *given, path=folder / "model.pt")
    (folder / "model.toml").write_text(toml)
    return folder


FOLDERS = {"torchscript": torchscript_folder}
