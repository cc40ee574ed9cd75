"""The CUDA runtime on a fake device, which runs its steps as late and as mixed up as events allow.

What reads memory before it was written, or writes what is still read, then gives wrong scores.
"""

import random

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from deeprecsys.core import UserError, repeat_inputs
from deeprecsys.models import NAMES, load_model
from deeprecsys.models.model import Model
from deeprecsys.runtimes import cuda
from deeprecsys.runtimes.cuda import Cuda, check
from deeprecsys.runtimes.packing import ALIGNMENT, Packing


class FakeStreams:
    """Steps wait in their stream until somebody waits for an event; then any that may runs."""

    device = torch.device("cpu")

    def __init__(self, seed=0):
        self.queues, self.random, self.fails = [], random.Random(seed), False
        self.clock_s = 0.0

    def stream(self):
        return FakeStream(self)

    def pinned(self, size):
        return torch.full((size,), 0x7F, dtype=torch.uint8)

    def enter_thread(self):
        pass

    def settle(self):
        self.progress(lambda: False)

    def progress(self, enough):
        while not enough():
            able = [q for q in self.queues if q and not (q[0][0] == "after" and not q[0][1].passed)]
            if not able:
                return
            kind, what = self.random.choice(able).pop(0)
            self.clock_s += 1.0
            if self.fails:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            if kind == "run":
                what()
            elif kind == "record":
                what.passed, what.at_s = True, self.clock_s


class FakeStream:
    def __init__(self, owner):
        self.owner, self.queue = owner, []
        owner.queues.append(self.queue)

    def run(self, step):
        self.queue.append(("run", step))

    def record(self):
        event = FakeEvent(self.owner)
        self.queue.append(("record", event))
        return event

    def after(self, event):
        self.queue.append(("after", event))


class FakeEvent:
    def __init__(self, owner):
        self.owner, self.passed = owner, False

    def wait(self):
        self.owner.progress(lambda: self.passed)
        assert self.passed, "waits for ever"

    def since(self, other):
        assert self.passed
        assert other.passed
        return self.at_s - other.at_s


SHARED = "din, query inputs"


def loaded(name):
    shared = name == SHARED
    return load_model(name.split(",")[0], scale=1e-4, seed=3, query_inputs=shared)


@pytest.fixture(scope="module", params=[*NAMES, SHARED])
def model(request):
    return loaded(request.param)


def query(model, n, seed):
    inputs = model.example(n, np.random.default_rng(seed))
    return inputs, np.full((n, model.tasks), np.nan, np.float32)


def test_scores_are_the_reference_s_for_every_model(model):
    device = Cuda(model, largest=16, streams=FakeStreams())
    for sizes in ([5], [1, 7, 3], [40], [16]):  # 40: more than was warmed up
        pieces = [query(model, n, n) for n in sizes]
        device.end(device.begin(pieces))
        for inputs, scores in pieces:
            np.testing.assert_allclose(scores, model.reference(inputs), atol=1e-4)


NCF = load_model("ncf", scale=1e-4, seed=3)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=3), min_size=1, max_size=8),
    st.integers(0, 1000),
)
def test_requests_that_overlap_do_not_touch_each_other(requests, seed):
    device = Cuda(NCF, largest=8, streams=FakeStreams(seed))
    flying = []
    for number, sizes in enumerate(requests):
        pieces = [query(NCF, n, 100 * number + i) for i, n in enumerate(sizes)]
        if len(flying) == device.depth:
            device.end(flying.pop(0)[1])
        flying.append((pieces, device.begin(pieces)))
        requests[number] = pieces
    for _, ticket in flying:
        device.end(ticket)
    for pieces in requests:
        for inputs, scores in pieces:
            np.testing.assert_allclose(scores, NCF.reference(inputs), atol=1e-4)
    assert device.spent.requests == len(requests)
    assert device.spent.copy_in_s > 0
    assert device.spent.execute_s > 0


def test_the_fake_notices_a_missing_event(monkeypatch):
    """Else the test above could not fail."""
    monkeypatch.setattr(FakeStream, "after", lambda self, event: None)

    def open_many():
        for seed in range(20):
            Cuda(NCF, largest=8, streams=FakeStreams(seed))

    # Ids from memory that was not written yet, scores of the request before, or an answer that
    # is there before the execution.
    with pytest.raises((RuntimeError, IndexError, AssertionError), match=r"wrongly|range|passed"):
        open_many()


def test_a_device_that_computes_wrongly_is_refused(monkeypatch):
    true = Model.reference
    monkeypatch.setattr(Model, "reference", lambda self, inputs: true(self, inputs) + 1e-3)
    with pytest.raises(RuntimeError, match="computes ncf wrongly"):
        Cuda(NCF, largest=4, streams=FakeStreams())


def test_a_failing_device_raises_for_its_owner():
    streams = FakeStreams()
    device = Cuda(NCF, largest=4, streams=streams)
    streams.fails = True
    with pytest.raises(RuntimeError, match="illegal memory access"):
        device.end(device.begin([query(NCF, 4, 0)]))


def test_the_original_model_keeps_its_weights():
    model = load_model("dlrm-rmc1", scale=1e-4)
    before = [p.data_ptr() for p in model.module.parameters()]
    Cuda(model, largest=4, streams=FakeStreams())
    assert [p.data_ptr() for p in model.module.parameters()] == before


def test_what_a_slot_cannot_hold_is_not_the_device_s(monkeypatch):
    """One large query would otherwise take the device's memory, and keep it."""
    monkeypatch.setattr(cuda, "SLOTS_BYTES", 2 * 12 * 100)  # of an item: two ids and a score
    device = Cuda(NCF, largest=1024, streams=FakeStreams())
    assert 80 <= device.most_items <= 100
    assert max(slot.items for slot in device._slots) <= device.most_items
    most = device.most_items
    inputs, scores = query(NCF, most, 0)
    device.end(device.begin([(inputs, scores)]))
    np.testing.assert_allclose(scores, NCF.reference(inputs), atol=1e-4)
    with pytest.raises(ValueError, match="more than cuda:0 holds"):
        device.begin([query(NCF, most + 1, 0)])


def test_what_candidates_share_is_sent_once_and_not_repeated_on_the_host():
    """Whether their query brings one row of the user, or one each; several queries as one."""
    model = loaded(SHARED)
    device = Cuda(model, largest=4, streams=FakeStreams())
    of_user = [spec.name for spec in model.inputs if spec.scope == "query"]
    for shared, sizes in (([1], [60]), ([1, 1, 1], [7, 30, 1]), ([1, 20], [9, 20])):
        pieces = [query(model, n, n) for n in sizes]
        for (inputs, scores), rows in zip(pieces, shared, strict=True):
            if rows > 1:
                inputs.update(repeat_inputs(model.inputs, inputs, len(scores)))
            else:
                assert len(inputs[of_user[0]]) == 1
        before = device.spent.copied_bytes
        device.end(device.begin(pieces))
        sent = sum(array.nbytes for inputs, _ in pieces for array in inputs.values())
        assert sent <= device.spent.copied_bytes - before < sent + ALIGNMENT * len(model.inputs)
        for inputs, scores in pieces:
            np.testing.assert_allclose(scores, model.reference(inputs), atol=1e-4)
    row = Packing(model.inputs).layout([query(model, 60, 0)[0]], [60])
    block = torch.zeros(row.bytes, dtype=torch.uint8)
    for spec, tensor in zip(model.inputs, Packing(model.inputs).views(block, row), strict=True):
        assert len(tensor) == 60
        assert (tensor.stride(0) == 0) is (spec.scope == "query")


def test_a_slot_has_bytes_for_what_comes_and_not_for_what_might():
    model = loaded(SHARED)
    device = Cuda(model, largest=4, streams=FakeStreams())
    device.end(device.begin([query(model, 200, 0)]))
    assert max(slot.items for slot in device._slots) == 200
    assert max(len(slot.staged) for slot in device._slots) < device._packing.bytes(50)


def test_a_slot_grows_to_no_more_than_it_may_take():
    device = Cuda(NCF, largest=8, streams=FakeStreams())
    for n in (9, 30, 17, 100):
        device.end(device.begin([query(NCF, n, n)]))
    assert all(slot.items <= device.most_items for slot in device._slots)
    assert device.most_items * (device._packing.bytes(1 << 16) / (1 << 16) + 4) * 2 <= 513 << 20


def test_waiting_for_a_gpu_does_not_spin(monkeypatch):
    made = []

    class Event:
        def __init__(self, **how):
            made.append(how)

        def record(self, stream):
            pass

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    cuda._CudaStream(torch.device("cuda", 0)).record()
    assert made == [{"enable_timing": True, "blocking": True}]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so():
    with pytest.raises(UserError, match=r"no GPU cuda:0 .* emulate one"):
        check(0, 1e9)


def test_a_model_too_large_for_the_device_is_refused_before_loading(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (8e9, 16e9))
    with pytest.raises(UserError, match=r"needs 12\.1 GB on cuda:0 and 8\.0 GB are free"):
        check(0, 10e9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_real_gpu_gives_the_reference_scores(model):
    device = Cuda(model, largest=64)
    inputs, scores = query(model, 50, 1)
    device.end(device.begin([(inputs, scores)]))
    np.testing.assert_allclose(scores, model.reference(inputs), atol=1e-4)
    device.close()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=4), st.sampled_from([*NAMES, SHARED]))
def test_packed_inputs_are_the_inputs(sizes, name):
    spec = MODELS[name]
    packing = Packing(spec.inputs, spec.joined)
    assume(n := sum(sizes))
    queries = [spec.example(size, np.random.default_rng(i)) for i, size in enumerate(sizes)]
    layout = packing.layout(queries, sizes)
    block = np.zeros(layout.bytes, np.uint8)
    packing.pack(block, queries, layout)
    tensors = packing.views(torch.from_numpy(block), layout)
    apart = [s.name for s in spec.inputs if s.name not in set(spec.joined)]
    for tensor, wanted in zip(tensors, apart, strict=False):
        repeated = [repeat_inputs(spec.inputs, q, n) for q, n in zip(queries, sizes, strict=True)]
        expected = np.concatenate([q[wanted] for q in repeated])
        np.testing.assert_array_equal(tensor.numpy(), expected)
    if spec.joined:
        ids = np.concatenate([[q[name].reshape(-1) for name in spec.joined] for q in queries], 1)
        np.testing.assert_array_equal(tensors[-1].numpy(), ids.T)
    assert all(offset % ALIGNMENT == 0 for offset in layout.offsets)
    assert sum(s > 0 for s in sizes) < len(sizes) or layout.bytes <= packing.bytes(n)


MODELS = {name: loaded(name) for name in [*NAMES, SHARED]}
