"""The published equations in NumPy, float64, one candidate at a time where that reads better.

Written from the papers, not from the modules: it shares with them only the names under which
they keep their weights.
"""

from __future__ import annotations

import numpy as np

from deeprecsys.models import Model


def scores(model: Model, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """[N, K] in float64."""
    weights = {k: v.numpy().astype(np.float64) for k, v in model.module.state_dict().items()}
    equations = {
        "ncf": ncf,
        "wnd": wide_and_deep,
        "mt-wnd": wide_and_deep,
        "din": din,
        "dien": dien,
    }
    return equations.get(model.name, dlrm)(model, weights, tables(model), inputs)


def tables(model: Model) -> dict[str, np.ndarray]:
    """Each table by name, cut out of the one array that holds all."""
    every = next(p for n, p in model.module.named_parameters() if n.endswith("weight")).numpy()
    result, start = {}, 0
    for table in model.spec.tables:
        rows = max(1, round(table.rows * model.scale))
        result[table.name] = every[start : start + rows].astype(np.float64)
        start += rows
    assert start == len(every)
    return result


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def relu(x):
    return np.maximum(x, 0)


def prelu(slope):
    return lambda x: np.where(x > 0, x, slope * x)


def perceptron(w, name, x, last=False):
    """Linear layers in order; ReLU, or PReLU where slopes are stored, in between."""
    numbers = sorted({int(k.split(".")[1]) for k in w if k.startswith(f"{name}.")})
    layers = [i for i in numbers if f"{name}.{i}.bias" in w]
    for i in layers:
        x = x @ w[f"{name}.{i}.weight"].T + w[f"{name}.{i}.bias"]
        if i != layers[-1] or last:
            slope = w.get(f"{name}.{i + 1}.weight") if f"{name}.{i + 1}.bias" not in w else None
            x = relu(x) if slope is None else prelu(slope)(x)
    return x


def ncf(model, w, t, inputs):
    user, item = inputs["user"][:, 0], inputs["item"][:, 0]
    gmf = t["gmf_user"][user] * t["gmf_item"][item]
    deep = np.concatenate([t["mlp_user"][user], t["mlp_item"][item]], 1)
    deep = perceptron(w, "mlp", deep, last=True)
    return sigmoid(perceptron(w, "predict", np.concatenate([gmf, deep], 1)))


def wide_and_deep(model, w, t, inputs):
    dense = inputs["dense"].astype(np.float64)
    x = np.concatenate([dense, *(t[name][inputs[name][:, 0]] for name in t)], 1)
    x = perceptron(w, "shared", x, last=True)
    if model.tasks == 1:
        logits = perceptron(w, "towers", x)
    else:
        logits = np.concatenate([tower(w, task, model.tasks, x) for task in range(model.tasks)], 1)
    if "wide.weight" in w:
        logits = logits + dense @ w["wide.weight"].T + w["wide.bias"]
    return sigmoid(logits)


def tower(w, task, tasks, x):
    """One task's own perceptron: its share of the first layer, then its slices of the others."""
    x = x @ np.split(w["towers.first.weight"], tasks)[task].T
    x = x + np.split(w["towers.first.bias"], tasks)[task]
    depth = sum(k.startswith("towers.weights.") for k in w)
    for i in range(depth):
        x = relu(x) @ w[f"towers.weights.{i}"][task] + w[f"towers.biases.{i}"][task]
    return x


def dlrm(model, w, t, inputs):
    dense = perceptron(w, "bottom", inputs["dense"].astype(np.float64), last=True)
    vectors = [dense, *(t[name][inputs[name]].sum(1) for name in t)]
    if model.variant == "authors-code":
        features = vectors
    else:
        pairs = [(vectors[i] * vectors[j]).sum(1) for i in range(len(vectors)) for j in range(i)]
        features = [dense, np.stack(pairs, 1)]
    return sigmoid(perceptron(w, "top", np.concatenate(features, 1)))


def interest_embeddings(model, t, inputs):
    """Behaviours [N, T, event], candidate [N, event], others [N, .]."""
    of = {f.name: t[f.tables[0]] for f in model.spec.features}
    events = [of[name][inputs[name]] for name in model.spec.behaviours]
    k = np.concatenate(events, 1 if model.spec.table_a_step else 2)
    candidate = [of[name][inputs[name][:, 0]] for name in model.spec.candidate]
    others = [of[name][inputs[name][:, 0]] for name in model.spec.others]
    return k, np.concatenate(candidate, 1), np.concatenate(others, 1)


def click(w, *parts):
    return softmax(perceptron(w, "top", np.concatenate(parts, 1)), 1)[:, 1:]


def din(model, w, t, inputs):
    k, q, others = interest_embeddings(model, t, inputs)
    one_layer = w["activation.weight"].reshape(-1, w["activation.weight"].shape[2])
    pooled = np.zeros_like(q)
    for step in range(k.shape[1]):
        b = k[:, step]
        hidden = np.concatenate([b, q, q - b, q * b], 1) @ one_layer + w["activation.bias"]
        hidden = prelu(w["activation.prelu.weight"])(hidden)
        intensity = hidden @ w["activation.out.weight"].T + w["activation.out.bias"]
        pooled += intensity * b
    return click(w, q, others, pooled)


def dien(model, w, t, inputs):
    events, candidate, others = interest_embeddings(model, t, inputs)
    n, steps, hidden = len(events), events.shape[1], model.spec.hidden

    h, interests = np.zeros((n, hidden)), []
    for step in range(steps):
        i_r, i_z, i_n = np.split(events[:, step] @ w["extract.input"].T, 3, axis=1)
        s_r, s_z, s_n = np.split(h @ w["extract.state"].T, 3, axis=1)
        b_r, b_z, b_n = np.split(w["extract.input_bias"], 3)
        c_r, c_z, c_n = np.split(w["extract.state_bias"], 3)
        reset = sigmoid(i_r + s_r + b_r + c_r)
        update = 1 - sigmoid(i_z + s_z + b_z + c_z)  # the weights are torch's: its gate keeps
        h = (1 - update) * h + update * np.tanh(i_n + b_n + reset * (s_n + c_n))
        interests.append(h)

    relevance = [(h * (candidate @ w["evolve.attention"])).sum(1) for h in interests]
    attention = softmax(np.stack(relevance, 1), 1)

    state = np.zeros((n, hidden))
    w_r, w_u, w_n = np.split(w["evolve.input"], 3, axis=1)
    b_r, b_u, b_n = np.split(w["evolve.bias"], 3)
    u_r, u_u = np.split(w["evolve.state_gates"], 2, axis=1)
    for step, h in enumerate(interests):
        reset = sigmoid(h @ w_r + state @ u_r + b_r)
        update = attention[:, step, None] * sigmoid(h @ w_u + state @ u_u + b_u)
        new = np.tanh(h @ w_n + reset * (state @ w["evolve.state_new"]) + b_n)
        state = (1 - update) * state + update * new
    return click(w, candidate, others, state)
