"""The examples of deploy/: they parse, agree with the server and with each other, and the programs
that will read them take them, where those are here."""

import configparser
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml

from deeprecsys.cli import serve_file
from deeprecsys.cli.main import app
from deeprecsys.cli.serve import Wanted
from deeprecsys.serving.server import FINISH_S, Address
from serving_fixture import Client, serving
from stub_device import StubDevice
from stub_model import StubModel, StubRuntime

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SERVE = typer.main.get_command(app).commands["serve"]
DEFAULTS = {parameter.name: parameter.default for parameter in SERVE.params}
# After --drain-s a server ends within so long (docs/security.md).
ENDS_S = 5
# Labels that Prometheus gives, and that of a bucket.
GIVEN = {"namespace", "job", "instance", "le"}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no promtool here: install Debian's package prometheus"
)
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here")
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze here"
)


def text(name):
    return (DEPLOY / name).read_text()


def objects():
    return {one["kind"]: one for one in yaml.safe_load_all(text("kubernetes.yaml"))}


def pod():
    return objects()["Deployment"]["spec"]["template"]["spec"]


def configuration(folder):
    """What the mounted file asks of the server, and of its models, as `serve` reads it."""
    file = folder / "serve.toml"
    file.write_text(objects()["ConfigMap"]["data"][file.name])
    return serve_file.read(str(file), Wanted())


def container():
    [only] = pod()["containers"]
    return only


def rules():
    [group] = yaml.safe_load(text("prometheus-rules.yaml"))["groups"]
    return group["rules"]


def panels():
    return json.loads(text("grafana-dashboard.json"))["panels"]


def shown():
    """Every expression of the dashboard."""
    return [target["expr"] for panel in panels() for target in panel.get("targets", ())]


def instructions():
    """(name, rest) of each of the Dockerfile's."""
    lines = [line for line in text("Dockerfile").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def of(name):
    return [rest for found, rest in instructions() if found == name]


def unit():
    """Sections of the systemd unit."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read_string(text("deeprecsys.service"))
    return parser


def seconds(words):
    number, of = re.fullmatch(r"(\d+)(s|min)", words).groups()
    return int(number) * {"s": 1, "min": 60}[of]


# Kubernetes


def test_the_kubernetes_objects_have_what_their_kinds_require():
    assert set(objects()) == {"ConfigMap", "Deployment", "PodDisruptionBudget", "Service"}
    versions = {kind: one["apiVersion"] for kind, one in objects().items()}
    assert versions == {
        "ConfigMap": "v1", "Service": "v1", "Deployment": "apps/v1",
        "PodDisruptionBudget": "policy/v1",
    }  # fmt: skip
    for one in objects().values():
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", one["metadata"]["name"])
    spec = objects()["Deployment"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    for selector in (
        spec["selector"]["matchLabels"],
        objects()["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        objects()["Service"]["spec"]["selector"],
    ):
        assert selector
        assert selector.items() <= labels.items()
    assert container().keys() >= {"name", "image", "args", "ports", "resources"}


def test_names_within_the_kubernetes_objects_lead_somewhere():
    named = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert named == {"http": DEFAULTS["http_port"], "grpc": DEFAULTS["grpc_port"]}
    for port in objects()["Service"]["spec"]["ports"]:
        assert port["targetPort"] in named
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container()[probe]["httpGet"]["port"] in named
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    assert {mount["name"] for mount in container()["volumeMounts"]} == set(volumes)
    mounted = volumes["config"]["configMap"]["name"]
    assert mounted == objects()["ConfigMap"]["metadata"]["name"]


def test_the_mounted_configuration_is_the_one_that_is_served(tmp_path):
    mounts = {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]}
    path = Path(container()["args"][container()["args"].index("--config") + 1])
    assert str(path.parent) == mounts["config"]
    assert path.name in objects()["ConfigMap"]["data"]
    wanted, entries = configuration(tmp_path)
    assert wanted.host == "0.0.0.0"  # within the pod 127.0.0.1 would be heard by nobody else
    for entry in entries:
        assert all(path.startswith(f"{mounts['models']}/") for path in (entry.model, entry.policy))


def test_requests_equal_limits_in_whole_cores():
    resources = container()["resources"]
    assert resources["requests"] == resources["limits"]
    assert int(resources["limits"]["cpu"]) >= 1  # "1500m" and "1.5" are no whole numbers
    assert resources["limits"].keys() == {"cpu", "memory"}


def test_the_pod_is_given_longer_than_the_server_takes_to_end(tmp_path):
    drain_s = configuration(tmp_path)[0].drain_s
    command = container()["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "sleep"
    before_s = float(command[1])
    assert ENDS_S > FINISH_S
    assert pod()["terminationGracePeriodSeconds"] > before_s + drain_s + ENDS_S


def test_the_pod_is_nobody_and_writes_nothing():
    assert pod()["securityContext"]["runAsNonRoot"] is True
    own = container()["securityContext"]
    assert own["readOnlyRootFilesystem"] is True
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert all(mount["readOnly"] for mount in container()["volumeMounts"])
    assert pod()["securityContext"]["runAsUser"] == int(of("USER")[0].split(":")[0])


def test_a_probe_does_not_end_what_loads():
    assert container()["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
    assert container()["startupProbe"]["httpGet"]["path"] == "/v2/health/live"
    assert container()["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert container()["livenessProbe"]["failureThreshold"] >= 3  # one may see a dead worker


@needs_kubectl
def test_kubectl_knows_every_field_of_the_deployment():
    """Its own types drop what they do not know; it must be given something to change."""
    done = subprocess.run(
        ["kubectl", "set", "image", "--local", "--filename", DEPLOY / "kubernetes.yaml",
         f"{container()['name']}=another", "--output", "json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    changed = list(lost(objects()["Deployment"], json.loads(done.stdout)))
    assert changed == ["/spec/template/spec/containers/0/image"]


def lost(given, kept, where=""):
    """Paths of what was given and not kept."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for name, value in given.items():
            yield from lost(value, kept.get(name), f"{where}/{name}")
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for k, (a, b) in enumerate(zip(given, kept, strict=True)):
            yield from lost(a, b, f"{where}/{k}")
    elif given != kept:
        yield where


@pytest.mark.engine
def test_a_server_answers_every_probe_without_a_key():
    probes = [probe for name, probe in container().items() if name.endswith("Probe")]
    paths = {probe["httpGet"]["path"] for probe in probes}
    paths |= set(re.findall(r"http://127\.0\.0\.1:\d+(/[\w/]+)", of("HEALTHCHECK")[0]))
    assert len(paths) == 2
    address = Address("127.0.0.1", 0, None, key="secret")
    with serving(StubModel(), StubRuntime(), address=address) as server, Client(server) as client:
        for path in paths:
            assert client.get(path)[0] == 200
        assert client.ask("GET", "/metrics")[0] == 401


# The command line that all of them use


def commands():
    yield container()["args"]
    yield shlex.split(unit()["Service"]["ExecStart"])[1:]
    [shown] = re.findall(r"deeprecsys:\S+ (serve .*)", text("Dockerfile"))
    yield shlex.split(shown)


def test_every_option_of_the_examples_exists():
    known = {name for parameter in SERVE.params for name in parameter.opts}
    for verb, *words in commands():
        assert verb == "serve"
        for word in words:
            assert not word.startswith("--") or word in known, word


# Docker


def test_the_image_s_base_is_pinned():
    [base] = [rest.partition("=")[2] for rest in of("ARG") if rest.startswith("BASE=")]
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", base)
    assert {rest.split()[0] for rest in of("FROM")} == {"${BASE}"}
    assert "latest" not in "".join(map(" ".join, instructions()))


def test_the_image_s_packages_are_those_of_the_constraints():
    installs = re.findall(r"pip install ([^&]+)", " ".join(of("RUN")))
    assert len(installs) == 3
    assert all("-c constraints.txt" in install for install in installs)
    assert "/whl/cpu " in installs[0]
    assert "--no-deps" in installs[0]
    assert re.search(r"^torch==[\d.]+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_the_image_runs_as_nobody_without_a_compiler():
    names = [name for name, _ in instructions()]
    last = len(names) - 1 - names[::-1].index("FROM")
    final = instructions()[last:]
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", dict(final)["USER"])
    assert names.index("USER") > last
    assert "g++" not in "".join(rest for _, rest in final)
    assert [name for name, _ in final].index("USER") > max(
        k for k, (name, _) in enumerate(final) if name == "RUN"
    )


def test_the_image_s_ports_are_the_server_s():
    ports = str(DEFAULTS["http_port"]), str(DEFAULTS["grpc_port"])
    assert tuple(of("EXPOSE")[0].split()) == ports
    check = json.loads(of("HEALTHCHECK")[0].partition("CMD ")[2])
    assert f"http://127.0.0.1:{ports[0]}/" in check[-1]
    compile(check[-1], "HEALTHCHECK", "exec")


def test_what_the_image_is_built_of_is_not_ignored():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if not line.startswith("#")]
    assert rules[0] == "*"
    taken = {rule[1:] for rule in rules if rule.startswith("!")}
    assert all((ROOT / name).exists() for name in taken)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert taken >= {"src", "setup.py", "pyproject.toml", "constraints.txt", project["readme"]}


# systemd


def test_the_unit_waits_for_queries_to_be_taken_and_for_the_server_s_end():
    service = unit()["Service"]
    assert service["Type"] == "notify"
    assert service["Restart"] == "on-failure"
    assert seconds(service["WatchdogSec"]) >= 4  # it is fed once a second at the most
    assert seconds(service["TimeoutStopSec"]) > DEFAULTS["drain_s"] + ENDS_S
    assert int(service["LimitNOFILE"]) > 2 * DEFAULTS["max_connections"]


def test_the_unit_has_no_rights():
    service = unit()["Service"]
    for name in ("DynamicUser", "NoNewPrivileges", "ProtectHome", "PrivateTmp"):
        assert service[name] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""
    assert "MemoryDenyWriteExecute" not in service  # torch's libraries compile as they run


@needs_systemd
def test_systemd_takes_the_unit(tmp_path):
    """But for its program, which is not installed here."""
    copy = tmp_path / "deeprecsys.service"
    program = shlex.split(unit()["Service"]["ExecStart"])[0]
    copy.write_text(text("deeprecsys.service").replace(program, shutil.which("true")))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, check=False
    )
    said = [line for line in done.stderr.splitlines() if "deeprecsys.service" in line]
    assert not said
    assert done.returncode == 0, done.stderr


# Prometheus and Grafana


def test_every_alert_says_how_bad_it_is_and_has_its_page():
    page = (ROOT / "docs/operating.md").read_text()
    headings = re.findall(r"^### (Deeprecsys\w+)$", page, re.MULTILINE)
    assert [rule["alert"] for rule in rules()] == headings
    for rule in rules():
        assert re.fullmatch(r"\d+m", rule["for"])
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["runbook"] == f"docs/operating.md#{rule['alert'].lower()}"


def test_every_alert_has_a_test_in_which_it_fires():
    tests = yaml.safe_load(text("prometheus-tests.yaml"))["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    fired = {case["alertname"] for case in cases if case["exp_alerts"]}
    assert fired == {rule["alert"] for rule in rules()}


@needs_promtool
def test_promtool_takes_the_rules_and_each_fires_when_it_should():
    promtool("check", "rules", DEPLOY / "prometheus-rules.yaml")
    promtool("test", "rules", DEPLOY / "prometheus-tests.yaml")


@needs_promtool
def test_promtool_understands_every_expression_of_the_dashboard(tmp_path):
    recorded = [
        {"record": f"panel:{k}", "expr": expr.replace("$__rate_interval", "5m")}
        for k, expr in enumerate(shown())
    ]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    promtool("check", "rules", file)


def promtool(*words):
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.engine
def test_every_metric_and_label_that_is_asked_for_is_one_that_a_server_has():
    more = {"engine": {"accelerators": [StubDevice()]}}
    with serving(StubModel(), StubRuntime(), **more) as server, Client(server) as client:
        assert client.infer({"dense": np.ones((3, 4), np.float32)})[0] == 200
        status, _ = client.send({}, bytes(2 << 20))  # beyond a bound, so that one is counted
        assert status == 413
        seen = client.ask("GET", "/metrics")[2].decode()
    names = set(re.findall(r"^(\w+)[{ ]", seen, re.MULTILINE))
    of_models = set(re.findall(r"^(\w+)\{[^}]*model=", seen, re.MULTILINE))
    labels = set(re.findall(r'[{,](\w+)="', seen)) | GIVEN
    asked = [rule["expr"] for rule in rules()] + shown()
    asked += [variable["definition"] for variable in variables() if "definition" in variable]
    series = yaml.safe_load(text("prometheus-tests.yaml"))["tests"]
    asked += [one["series"] for test in series for one in test["input_series"]]
    for expression in asked:
        found = re.findall(r"\b(?:deeprecsys|nv_inference)_\w+", expression)
        assert found, expression
        assert set(found) <= names, expression
        said = set(re.findall(r"[{,]\s*(\w+)=", expression))
        for by in re.findall(r"by \(([^)]+)\)", expression):
            said |= set(by.split(", "))
        assert said <= labels, expression
    for expression in shown():
        found = re.findall(r"\b(?:deeprecsys|nv_inference)_\w+", expression)
        chosen = expression.count('{model=~"$model",version=~"$version"}')
        if "by (instance)" not in expression:  # of a server, whatever its models
            assert chosen == len([name for name in found if name in of_models]), expression


def variables():
    return json.loads(text("grafana-dashboard.json"))["templating"]["list"]


def test_the_dashboard_lets_model_and_version_be_chosen():
    assert [variable["name"] for variable in variables()] == ["datasource", "model", "version"]


def test_no_panel_of_the_dashboard_lies_on_another():
    assert len({panel["id"] for panel in panels()}) == len(panels())
    places = [panel["gridPos"] for panel in panels()]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for a, b in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above
