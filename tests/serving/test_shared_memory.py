"""Tensors in shared memory, by the reference client: what works, and what a region's owner, or
another, does to it meanwhile."""

import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

import deeprecsys as drs
from deeprecsys.client.client import Client as LoadClient
from deeprecsys.core import UserError
from deeprecsys.models import load_model
from deeprecsys.protocol.reasons import Refusal
from deeprecsys.protocol.shared import Place
from deeprecsys.serving import http_adapter, shared_memory
from deeprecsys.serving.bounds import Bounds
from deeprecsys.serving.keys import Keys
from deeprecsys.serving.server import Address
from deeprecsys.serving.shared_memory import Region, Regions, check_local
from serving_fixture import WAIT_S, Client, serving
from stub_model import StubModel, StubRuntime
from waiting import until

pytestmark = pytest.mark.engine

MODEL = load_model("dlrm-rmc1", scale=0.001)
N = 7
NOBODY = 65534


@pytest.fixture(scope="module")
def server():
    with serving(MODEL) as server:
        yield server


@contextmanager
def asking(server, protocol):
    module = triton_http if protocol == "http" else triton_grpc
    port = server.http_port if protocol == "http" else server.grpc_port
    with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield module, client


@pytest.fixture(params=["http", "grpc"])
def triton(server, request):
    with asking(server, request.param) as both:
        yield both


def key_of(name):
    return f"/deeprecsys-test-{os.getpid()}-{name.replace('/', '-')}"


def file_of(name):
    return f"/dev/shm{key_of(name)}"


@contextmanager
def region(client, name, size, offset=0):
    """A region that the server knows, and its memory."""
    handle = shm.create_shared_memory_region(name, key_of(name), offset + size)
    try:
        client.register_system_shared_memory(name, key_of(name), size, offset)
        yield handle
    finally:
        client.unregister_system_shared_memory(name)
        shm.destroy_shared_memory_region(handle)


@contextmanager
def made(name, size, mode=0o600):
    """Shared memory of which nobody was told."""
    with open(file_of(name), "wb") as file:
        file.truncate(size)
    os.chmod(file_of(name), mode)
    try:
        yield
    finally:
        os.unlink(file_of(name))


def inputs(n=N, seed=0):
    return MODEL.example(n, np.random.default_rng(seed))


def lying(module, given, name, offset=0):
    """Inputs one after another in that region, as the reference client says it."""
    found = []
    for spec in MODEL.inputs:
        array = given[spec.name]
        found.append(module.InferInput(spec.name, list(array.shape), spec.datatype))
        found[-1].set_shared_memory(name, array.nbytes, offset)
        offset += array.nbytes
    return found


def size_of(given):
    return sum(array.nbytes for array in given.values())


def arrays(given):
    return [given[spec.name] for spec in MODEL.inputs]


def contents(handle, n=N, offset=0):
    return shm.get_contents_as_numpy(handle, np.float32, [n, 1], offset).copy()


@pytest.mark.parametrize("offset", [0, 24])
def test_inputs_and_outputs_lie_in_regions(triton, offset):
    module, client = triton
    given = inputs()
    with (
        region(client, "in", size_of(given) + offset, offset) as there,
        region(client, "out", 4 * N + offset) as back,
    ):
        shm.set_shared_memory_region(there, arrays(given), 2 * offset)
        wanted = module.InferRequestedOutput("scores")
        wanted.set_shared_memory("out", 4 * N, offset)
        answer = client.infer(MODEL.name, lying(module, given, "in", offset), outputs=[wanted])
        np.testing.assert_allclose(contents(back, N, offset), MODEL.reference(given), atol=1e-5)
        as_json = {} if module is triton_http else {"as_json": True}
        (said,) = answer.get_response(**as_json)["outputs"]
        assert [int(length) for length in said["shape"]] == [N, 1]
        assert set(said["parameters"]) >= {"shared_memory_region", "shared_memory_byte_size"}
        assert "data" not in said


def test_some_inputs_lie_there_and_others_come_with_the_query(triton):
    module, client = triton
    given = inputs()
    with region(client, "some", size_of(given)) as there:
        shm.set_shared_memory_region(there, arrays(given))
        sent = lying(module, given, "some")
        for number in (0, 3):
            sent[number].set_data_from_numpy(arrays(given)[number])
        scores = client.infer(MODEL.name, sent).as_numpy("scores")
    np.testing.assert_allclose(scores, MODEL.reference(given), atol=1e-5)


def test_natively_inputs_are_fetched_without_python_and_answers_are_python_s(server, monkeypatch):
    came = []
    init = http_adapter.Connection.__init__
    monkeypatch.setattr(
        http_adapter.Connection, "__init__", lambda *of: (came.append(1), init(*of))[1]
    )
    given = inputs()
    assert server.plane.native is not None
    with (
        serving(MODEL, log_queries=True) as python,
        asking(python, "http") as (_, other),
        asking(server, "http") as (module, client),
    ):
        with region(client, "in", size_of(given), 40) as there:
            other.register_system_shared_memory("in", key_of("in"), size_of(given), 40)
            shm.set_shared_memory_region(there, arrays(given), 40)
            sent = lying(module, given, "in")
            before = len(came)
            answers = [client.infer(MODEL.name, sent) for _ in range(5)]
            assert len(came) == before
            answers.append(other.infer(MODEL.name, sent))
            sent[2].set_data_from_numpy(arrays(given)[2])
            before = len(came)
            answers.append(client.infer(MODEL.name, sent))
            assert len(came) == before
            for answer in answers:
                scores = answer.as_numpy("scores")
                np.testing.assert_allclose(scores, MODEL.reference(given), atol=1e-5)
                assert answer.get_response() == answers[0].get_response()
            wrong = [array.copy() for array in arrays(given)]
            wrong[1][0, 0] = -1
            shm.set_shared_memory_region(there, wrong, 40)
            refusals = []
            for one in (client, other):
                with pytest.raises(InferenceServerException) as caught:
                    one.infer(MODEL.name, lying(module, given, "in"))
                refusals.append((caught.value.status(), caught.value.message()))
            assert refusals[0] == refusals[1]
            assert refusals[0][0] == "400"
        with pytest.raises(InferenceServerException, match="no region 'in' is registered"):
            client.infer(MODEL.name, lying(module, given, "in"))
        until(lambda: server.plane.native.held == 0)


def test_who_else_reads_regions_is_told_of_those_that_there_are():
    regions, told = Regions(), []

    class Told:
        def share(self, name, file, offset, size):
            told.append((name, offset, size, os.fstat(file).st_size))

        def unshare(self, name):
            told.append(name)

    with made("k", 64):
        regions.register("first", key_of("k"), 0, 64)
        regions.share_with(Told())
        regions.register("second", key_of("k"), 8, 16)
    regions.unregister("first")
    regions.unregister("first")
    regions.unregister()
    assert told == [("first", 0, 64, 64), ("second", 8, 16, 64), "first", "second"]


def test_what_is_registered_is_said(triton):
    module, client = triton
    as_json = {} if module is triton_http else {"as_json": True}
    assert "system_shared_memory" in client.get_server_metadata(**as_json)["extensions"]

    def status(name=""):
        found = client.get_system_shared_memory_status(name, **as_json)
        listed = found if module is triton_http else found.get("regions", {}).values()
        return {one["name"]: (one["key"], int(one["byte_size"]), int(one.get("offset", 0)))
                for one in listed}  # fmt: skip

    assert status() == {}
    with region(client, "a", 100), region(client, "b/c d", 50, 8):
        both = {"a": (key_of("a"), 100, 0), "b/c d": (key_of("b/c d"), 50, 8)}
        assert status() == both
        assert status("a") == {"a": both["a"]}
        with pytest.raises(InferenceServerException, match="no region 'nobody' is registered"):
            status("nobody")
        client.unregister_system_shared_memory("a")
        assert list(status()) == ["b/c d"]
        client.unregister_system_shared_memory()
        assert status() == {}
        client.unregister_system_shared_memory("nobody")


BAD = {
    "key is none": ("x", "/nobody-made-this", 100, 0, "no shared memory '/nobody-made-this'"),
    "too small": ("x", "known", 101, 0, "which has 100: make it larger"),
    "too small behind the offset": ("x", "known", 100, 1, "100 bytes at offset 1 are beyond"),
    "of nothing": ("x", "known", 0, 0, "byte_size is at least 1"),
    "a path": ("x", "/../etc/passwd", 1, 0, "must be one name"),
    "a folder above": ("x", "..", 1, 0, "its key must be a name"),
    "a path within": ("x", "a/b", 1, 0, "must be one name"),
    "two slashes": ("x", "//a", 1, 0, "must be one name"),
    "no key": ("x", "/", 1, 0, "its key must be a name"),
    "a zero in it": ("x", "a\0b", 1, 0, "must be one name"),
    "a name without end": ("x" * 300, "known", 1, 0, "1 to 256 characters"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_registered_is_said(triton, case):
    _, client = triton
    name, key, size, offset, why = BAD[case]
    with made("known", 100), pytest.raises(InferenceServerException, match=why) as caught:
        client.register_system_shared_memory(
            name, key_of("known") if key == "known" else key, size, offset
        )
    assert "400" in caught.value.status() or "INVALID_ARGUMENT" in caught.value.status()


def test_a_link_a_folder_and_a_pipe_are_no_shared_memory(server):
    regions = Regions()
    makers = {
        "link": lambda path: os.symlink("/etc/hostname", path),
        "folder": os.mkdir,
        "pipe": os.mkfifo,
    }
    for name, make in makers.items():
        make(file_of(name))
        try:
            with pytest.raises(Refusal, match="is no shared memory"):
                regions.register(name, key_of(name), 0, 1)
        finally:
            (os.rmdir if name == "folder" else os.unlink)(file_of(name))
    assert len(regions) == 0


def test_a_region_is_registered_once_and_there_are_so_many(server, monkeypatch):
    regions = Regions()
    monkeypatch.setattr(shared_memory, "MOST_REGIONS", 2)
    with made("a", 10):
        regions.register("one", key_of("a"), 0, 10)
        with pytest.raises(Refusal, match="registered already: unregister it first"):
            regions.register("one", key_of("a"), 0, 10)
        regions.register("two", key_of("a"), 5, 5)
        with pytest.raises(Refusal, match="2 regions are registered, and there can be no more"):
            regions.register("three", key_of("a"), 0, 1)
        regions.unregister("one")
        regions.register("three", key_of("a"), 0, 1)


def changed(**parameters):
    def change(item):
        item["parameters"].update(parameters)

    return change


WRONG = {
    "a region that is not there": (changed(shared_memory_region="no"), "no region 'no'"),
    "beyond its end": (changed(shared_memory_offset=10**6), "beyond region 'in'"),
    "an offset without end": (changed(shared_memory_offset=(1 << 63) - 1), "beyond region 'in'"),
    "beyond all offsets": (changed(shared_memory_offset=1 << 70), "whole number of bytes"),
    "not its size": (changed(shared_memory_byte_size=8), "bytes, not 8"),
    "no size": (lambda i: i["parameters"].pop("shared_memory_byte_size"), "whole number of bytes"),
    "a negative offset": (changed(shared_memory_offset=-4), "whole number of bytes"),
    "a size that is none": (changed(shared_memory_byte_size="4"), "whole number of bytes"),
    "a name that is none": (changed(shared_memory_region=4), "is the name of a region"),
    "data beside it": (lambda i: i.update(data=[1.0]), "has data beside"),
    "bytes beside it": (changed(binary_data_size=4), "has data beside"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_input_that_cannot_lie_there_is_refused(server, case):
    change, why = WRONG[case]
    given = inputs()
    with (
        asking(server, "http") as (module, client),
        region(client, "in", size_of(given)) as there,
        Client(server) as bare,
    ):
        shm.set_shared_memory_region(there, arrays(given))
        items = [item._get_tensor() for item in lying(module, given, "in")]
        change(items[0])
        status, said = bare.send({"inputs": items})
        assert (status, why in said["error"]) == (400, True), said
        assert "\n" not in said["error"]


def output(size=4 * N, offset=0, name="out"):
    return {"shared_memory_region": name, "shared_memory_byte_size": size,
            "shared_memory_offset": offset}  # fmt: skip


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        (output(name="no"), "no region 'no' is registered: register it first"),
        (output(size=4 * N - 1), "give it more room"),
        (output(size=5 * N), "beyond region 'out'"),
        (output(offset=1), "beyond region 'out'"),
    ],
)
def test_an_output_that_has_no_room_is_refused(server, parameters, why):
    with (
        asking(server, "http") as (_, client),
        region(client, "out", 4 * N),
        Client(server) as bare,
    ):
        said = {"outputs": [{"name": "scores", "parameters": parameters}]}
        status, answer = bare.infer(inputs(), **said)
        assert (status, why in answer["error"]) == (400, True), answer


def test_memory_that_is_shortened_later_costs_its_own_query_alone(triton):
    module, client = triton
    given = inputs()
    with region(client, "in", size_of(given)) as there, region(client, "out", 4 * N) as back:
        shm.set_shared_memory_region(there, arrays(given))
        sent = lying(module, given, "in")
        client.infer(MODEL.name, sent)
        os.truncate(file_of("in"), 10)
        with pytest.raises(InferenceServerException, match="shorter than when it was registered"):
            client.infer(MODEL.name, sent)
        for item, array in zip(sent, arrays(given), strict=True):
            item.set_data_from_numpy(array)
        wanted = module.InferRequestedOutput("scores")
        wanted.set_shared_memory("out", 4 * N)
        client.infer(MODEL.name, sent, outputs=[wanted])
        os.truncate(file_of("out"), 0)
        with pytest.raises(InferenceServerException, match="shorter than when it was registered"):
            client.infer(MODEL.name, sent, outputs=[wanted])
        assert os.stat(file_of("out")).st_size == 0
        for handle, size in ((there, size_of(given)), (back, 4 * N)):
            os.truncate(f"/dev/shm{handle._shm_key}", size)  # or its own unmapping would end us


def test_memory_without_its_name_is_what_was_registered(triton):
    module, client = triton
    given, other = inputs(), inputs(seed=1)
    with region(client, "in", size_of(given)) as there:
        shm.set_shared_memory_region(there, arrays(given))
        os.rename(file_of("in"), file_of("gone"))
        try:
            with made("in", size_of(other)):
                scores = client.infer(MODEL.name, lying(module, given, "in")).as_numpy("scores")
        finally:
            os.rename(file_of("gone"), file_of("in"))
    np.testing.assert_allclose(scores, MODEL.reference(given), atol=1e-5)


AS_NOBODY = """
import os, sys
from deeprecsys.protocol.reasons import Refusal
from deeprecsys.protocol.shared import Place
from deeprecsys.serving.shared_memory import Region
os.setgroups([]), os.setgid({nobody}), os.setuid({nobody})
for key, act in ({key!r}, "register"), ({open!r}, "write"):
    try:
        region = Region("r", key, 0, 8)
        print(bytes(region.read(Place("r", 0, 8))))
        region.open_for_writing()
    except Refusal as refusal:
        print(refusal.reason.status, refusal.message)
"""


def test_another_users_memory_is_what_the_system_lets_be_read_and_written():
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    with made("closed", 8, 0o600), made("open", 8, 0o644):
        code = AS_NOBODY.format(nobody=NOBODY, key=key_of("closed"), open=key_of("open"))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                              check=True)  # fmt: skip
    closed, read, written = done.stdout.splitlines()
    assert closed.startswith("400 region 'r': shared memory")
    assert "is another user's: let the server's user read it" in closed
    assert read == str(bytes(8))
    assert written.startswith("400 region 'r' cannot be written (Permission denied)")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_query_under_way_keeps_its_region_and_its_values(protocol):
    runtime = StubRuntime()
    dense = np.ones((3, 4), np.float32)
    with serving(StubModel(), runtime) as server, asking(server, protocol) as (module, client):
        with region(client, "in", dense.nbytes) as there, region(client, "out", 12) as back:
            shm.set_shared_memory_region(there, [dense])
            item = module.InferInput("dense", [3, 4], "FP32").set_shared_memory("in", dense.nbytes)
            wanted = module.InferRequestedOutput("scores")
            wanted.set_shared_memory("out", 12)
            runtime.gate.clear()
            answers = []

            def ask():
                with asking(server, protocol) as (_, own):
                    answers.append(own.infer("stub", [item], outputs=[wanted]))

            thread = threading.Thread(target=ask)
            thread.start()
            until(lambda: server.plane.engine.load().executing)
            shm.set_shared_memory_region(there, [np.full((3, 4), 1e9, np.float32)])
            client.unregister_system_shared_memory()
            os.truncate(file_of("in"), 0)
            assert len(server.plane.regions) == 0
            runtime.gate.set()
            thread.join(WAIT_S)
            assert len(answers) == 1
            np.testing.assert_array_equal(contents(back, 3), np.full((3, 1), 4, np.float32))
            os.truncate(file_of("in"), dense.nbytes)
        until(lambda: server.plane.pending == 0)
        assert not [name for name in links() if "deeprecsys-test" in name]


def links():
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    return found


def test_what_is_copied_counts_as_a_body_does():
    dense = np.ones((60, 4), np.float32)
    bounds = Bounds(body_bytes=900)
    with (
        serving(StubModel(), StubRuntime(), bounds=bounds) as server,
        asking(server, "http") as (module, client),
        region(client, "in", dense.nbytes) as there,
    ):
        shm.set_shared_memory_region(there, [dense])
        item = module.InferInput("dense", [60, 4], "FP32").set_shared_memory("in", dense.nbytes)
        with pytest.raises(InferenceServerException, match=r"over 900 bytes \(--max-body-mb\)"):
            client.infer("stub", [item])
        item = module.InferInput("dense", [50, 4], "FP32").set_shared_memory("in", 800)
        assert client.infer("stub", [item]).as_numpy("scores").tolist() == [[4.0]] * 50
        until(lambda: server.plane.waiting.held == 0)


def test_a_server_that_ends_lets_go_of_what_was_registered():
    with made("k", 64):
        with serving(StubModel(), StubRuntime()) as server:
            server.plane.regions.register("k", key_of("k"), 0, 64)
            assert [name for name in links() if "deeprecsys-test" in name]
        assert not [name for name in links() if "deeprecsys-test" in name]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_much_is_copied_in_a_thread(protocol, monkeypatch):
    from deeprecsys.serving import grpc_adapter

    monkeypatch.setattr(http_adapter, "_SHORT_BODY", 1000)
    monkeypatch.setattr(grpc_adapter, "_SHORT_COPY", 1000)
    dense = np.arange(400, dtype=np.float32).reshape(100, 4)
    with (
        serving(StubModel(), StubRuntime()) as server,
        asking(server, protocol) as (module, client),
        region(client, "in", dense.nbytes) as there,
    ):
        shm.set_shared_memory_region(there, [dense])
        item = module.InferInput("dense", [100, 4], "FP32").set_shared_memory("in", dense.nbytes)
        for _ in range(3):
            scores = client.infer("stub", [item]).as_numpy("scores")
            np.testing.assert_array_equal(scores[:, 0], dense.sum(1))
        item.set_shared_memory("nowhere", dense.nbytes)
        with pytest.raises(InferenceServerException, match="no region 'nowhere'"):
            client.infer("stub", [item])
        until(lambda: server.plane.waiting.held == 0)


def test_shared_memory_of_cuda_is_not_supported(triton):
    module, client = triton
    calls = [
        client.get_cuda_shared_memory_status,
        client.unregister_cuda_shared_memory,
        lambda: client.register_cuda_shared_memory(
            "x", "AA==" if module is triton_http else b"AA==", 0, 100
        ),
    ]
    for call in calls:
        with pytest.raises(InferenceServerException, match="CUDA is not supported"):
            call()


@pytest.mark.parametrize("client", ["127.0.0.1", "127.3.4.5", "::1", "::ffff:127.0.0.1", "user 0"])
def test_clients_of_this_machine_may_register(client):
    check_local(client)


@pytest.mark.parametrize("client", ["10.0.0.1", "::ffff:10.0.0.1", "fe80::1%eth0", "2001:db8::1"])
def test_clients_of_other_machines_may_not(client):
    with pytest.raises(Refusal, match="for clients on the server's machine") as caught:
        check_local(client)
    assert caught.value.reason.status == 403


PATHS = {
    "GET /v2/systemsharedmemory": 404,
    "GET /v2/systemsharedmemory/nothing": 404,
    "POST /v2/systemsharedmemory/status": 405,
    "GET /v2/systemsharedmemory/region/x/register": 405,
    "POST /v2/systemsharedmemory/register": 405,
    "POST /v2/systemsharedmemory/region//unregister": 404,
    "GET /v2/systemsharedmemory/region/x/status": 404,
    "GET /v2/cudasharedmemory/region/x/status": 501,
    "POST /v2/systemsharedmemory/region/x/register": 400,
}


@pytest.mark.parametrize("asked", PATHS)
def test_other_paths_and_methods_are_refused(server, asked):
    method, path = asked.split()
    with Client(server) as client:
        status, _, body = client.ask(method, path, b"[1, 2]" if method == "POST" else None)
    assert (status, "error" in json.loads(body)) == (PATHS[asked], True)


def test_to_register_needs_a_key_with_the_right_to():
    keys = Keys.parse("a infer 0123456789abcdef\nb infer,memory fedcba9876543210\n")
    with (
        serving(StubModel(), StubRuntime(), address=Address("127.0.0.1", 0, 0, key=keys)) as server,
        made("k", 10),
        Client(server) as client,
    ):
        body = json.dumps({"key": key_of("k"), "byte_size": 10}).encode()
        path = "/v2/systemsharedmemory/region/x/registe%72"
        statuses = [
            client.ask("POST", path, body, {"Authorization": f"Bearer {key}"})[0]
            for key in ("0123456789abcdef", "nobody's", "fedcba9876543210")
        ]
        assert statuses == [403, 401, 200]
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            call = channel.unary_unary(
                "/inference.GRPCInferenceService/SystemSharedMemoryUnregister"
            )
            codes = []
            for key in ("0123456789abcdef", "fedcba9876543210"):
                try:
                    call(b"", metadata=[("authorization", f"Bearer {key}")])
                    codes.append("OK")
                except grpc.RpcError as error:
                    codes.append(error.code().name)
            assert codes == ["PERMISSION_DENIED", "OK"]
        assert len(server.plane.regions) == 0


def test_a_region_reads_and_writes_within_what_was_registered():
    with made("r", 32):
        region = Region("r", key_of("r"), 8, 16)
        region.open_for_writing()
        region.write(Place("r", 4, 8), b"abcdefgh")
        assert bytes(region.read(Place("r", 0, 16))) == bytes(4) + b"abcdefgh" + bytes(4)
        assert bytes(region.read(Place("r", 16, 0))) == b""
        with pytest.raises(Refusal, match="input x: 9 bytes at offset 8 are beyond region 'r'"):
            region.check("input x", Place("r", 8, 9))


def test_the_load_client_sends_its_queries_so(server):
    url = f"http://127.0.0.1:{server.http_port}"
    schedule = drs.Workload(sizes="uniform:1-30").schedule(rate_qps=200, duration_s=0.2)
    with LoadClient(url, MODEL.name, shared_memory=True) as client:
        records = client.run(schedule, None)
        assert (records.status == 0).all(), client.last_run()
        assert len(server.plane.regions) == 1
        assert client.last_run()["bytes_sent"] / len(schedule) < 3000
        assert not [name for name in os.listdir("/dev/shm") if name.startswith("deeprecsys-load")]
    until(lambda: len(server.plane.regions) == 0)
    with pytest.raises(UserError, match="leave it out, or --queries-file"):
        LoadClient("grpc://127.0.0.1:1", "x", shared_memory=True)
