"""The files that a cluster reads, held against Ray's validation, EC2's parameters and KubeRay's fields."""

import copy
import re
import shlex
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from llf_ray.config import override, parse_assignments
from llf_ray.train.folder import load_module

ROOT = Path(__file__).parents[1]


def load(path: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def on_premises() -> dict[str, Any]:
    """The one cluster file that docs/clusters.md shows."""
    page = (ROOT / "docs/clusters.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "type: local" in block]
    return yaml.safe_load(block)


def validate(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` does before it asks the cloud anything: fill in the provider's defaults, then check."""
    util = pytest.importorskip("ray.autoscaler._private.util")
    filled = util.prepare_config(copy.deepcopy(config))
    util.validate_config(filled)
    return filled


@pytest.fixture(params=["aws", "local"])
def cluster(request):
    return load("cluster.yaml") if request.param == "aws" else on_premises()


def test_ray_accepts_the_cluster_files(cluster):
    filled = validate(cluster)
    head = filled["available_node_types"][filled["head_node_type"]]
    assert head is not None
    assert filled["setup_commands"] == cluster["setup_commands"]  # ours, not the provider's defaults


def test_ray_finds_what_is_broken(cluster):
    with pytest.raises(jsonschema.ValidationError):
        validate({**cluster, "setup_command": ["true"]})
    with pytest.raises(jsonschema.ValidationError):
        validate({**cluster, "cluster_name": 3})
    with pytest.raises(jsonschema.ValidationError):
        validate({**cluster, "auth": {**cluster["auth"], "password": "x"}})


def test_ray_finds_a_head_of_no_known_type():
    with pytest.raises(ValueError, match="head_node_type"):
        validate({**load("cluster.yaml"), "head_node_type": "chief"})


def test_the_aws_cluster_has_a_pinned_head_and_workers_with_and_without_gpus():
    config = load("cluster.yaml")
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"]["CPU"] == 0, "training would land on the head"
    assert "InstanceMarketOptions" not in head["node_config"], "the head may not be taken away"
    assert sorted("GPU" in kind["resources"] for kind in types.values()) == [False, True]
    assert sum(kind["max_workers"] for kind in types.values()) <= config["max_workers"]
    assert sum(kind["min_workers"] for kind in types.values()) >= 1


def test_ec2_knows_every_parameter_of_the_nodes():
    """botocore ships EC2's own description of RunInstances: no call is made, no credentials are needed."""
    session = pytest.importorskip("botocore.session")
    validator = pytest.importorskip("botocore.validate").ParamValidator()
    model = session.get_session().get_service_model("ec2").operation_model("RunInstances")
    for name, kind in load("cluster.yaml")["available_node_types"].items():
        parameters = {**kind["node_config"], "MinCount": 1, "MaxCount": 1}
        report = validator.validate(parameters, model.input_shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"
    assert validator.validate({"InstanceTypo": "x", "MinCount": 1, "MaxCount": 1}, model.input_shape).has_errors()


def test_nodes_get_the_project_in_the_pinned_versions(cluster):
    mounted = {remote: local for remote, local in cluster["file_mounts"].items() if not local.startswith("~")}
    missing = [local for local in mounted.values() if not (ROOT / local).exists()]
    assert not missing
    assert {"llf_ray", "pyproject.toml", "constraints.txt"} <= set(mounted.values())
    assert any("pip install" in line and "-c constraints.txt" in line for line in cluster["setup_commands"])
    assert {".git", ".venv", "/runs", "/data"} <= set(cluster["rsync_exclude"])
    assert any(remote.endswith(".ray/auth_token") for remote in cluster["file_mounts"])
    for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        assert any("RAY_AUTH_MODE=token" in line for line in commands if "ray start" in line)


def test_a_cluster_file_holds_no_training_knob(cluster):
    """Whoever changes the learning rate must not have to restart a cluster, and the other way round."""
    text = yaml.safe_dump(cluster)
    assert not re.search(r"jobs/|llf-ray (run|compare|resume)|\b(optim|recipe|engine|task|seed)[.=]", text)


def test_shell_commands_can_be_parsed(cluster):
    for key in ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        assert all(shlex.split(line) for line in cluster[key])


# ray.io/v1 as of KubeRay 1.6: the fields of each level of a RayJob that the manifest may use.
RAYJOB_FIELDS = {
    "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint",
    "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata",
    "preRunningDeadlineSeconds", "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes",
    "submissionMode", "submitterConfig", "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished",
}  # fmt: skip
CLUSTER_FIELDS = {
    "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions",
    "headGroupSpec", "headServiceAnnotations", "managedBy", "rayVersion", "suspend", "upgradeStrategy",
    "workerGroupSpecs",
}  # fmt: skip
HEAD_FIELDS = {
    "enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType", "template",
}  # fmt: skip
WORKER_FIELDS = {
    "groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts",
    "rayStartParams", "replicas", "resources", "scaleStrategy", "suspend", "template",
}  # fmt: skip
CONTAINER_FIELDS = {"env", "image", "name", "ports", "resources", "volumeMounts", "workingDir"}


def check_rayjob(manifest: dict[str, Any]) -> None:
    """The structure that KubeRay's custom resource definition asks for, as far as the manifest goes."""

    def only(known: set[str], found: dict[str, Any], where: str) -> None:
        assert not set(found) - known, f"{where}: unknown {sorted(set(found) - known)}"

    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,45}[a-z0-9])?", manifest["metadata"]["name"])
    spec = manifest["spec"]
    only(RAYJOB_FIELDS, spec, "spec")
    assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
    assert isinstance(spec["backoffLimit"], int)
    assert isinstance(spec["ttlSecondsAfterFinished"], int)
    assert spec["shutdownAfterJobFinishes"] or not spec["ttlSecondsAfterFinished"], "a time to live without an end"
    variables = yaml.safe_load(spec.get("runtimeEnvYAML", "env_vars: {}"))["env_vars"]
    assert all(isinstance(value, str) for value in variables.values())

    cluster = spec["rayClusterSpec"]
    only(CLUSTER_FIELDS, cluster, "rayClusterSpec")
    assert cluster["authOptions"]["mode"] in ("token", "disabled")
    only(HEAD_FIELDS, cluster["headGroupSpec"], "headGroupSpec")
    for group in cluster["workerGroupSpecs"]:
        only(WORKER_FIELDS, group, f"worker group {group['groupName']}")
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            only(CONTAINER_FIELDS, container, container["name"])
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["resources"]["limits"] == container["resources"]["requests"]


def test_the_rayjob_manifest_is_one_that_kuberay_reads():
    manifest = load("jobs/rayjob.yaml")
    check_rayjob(manifest)
    cluster = manifest["spec"]["rayClusterSpec"]
    gpus = [
        container["resources"]["limits"].get("nvidia.com/gpu")
        for group in cluster["workerGroupSpecs"]
        for container in group["template"]["spec"]["containers"]
    ]
    assert gpus == [None, "1"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("kind",), "RayCluster"),
        (("spec", "entryPoint"), "python x.py"),
        (("spec", "submissionMode"), "Soon"),
        (("spec", "backoffLimit"), "3"),
        (("spec", "runtimeEnvYAML"), "env_vars: {A: 1}"),
        (("spec", "rayClusterSpec", "workerGroupSpec"), []),
        (("spec", "rayClusterSpec", "headGroupSpec", "replicas"), 1),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams"), {"num-cpus": 0}),
    ],
    ids=lambda value: str(value[-1]) if isinstance(value, tuple) else "",
)
def test_a_broken_manifest_is_found(path, value):
    manifest = load("jobs/rayjob.yaml")
    inner = manifest
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(AssertionError):
        check_rayjob(manifest)


def test_the_manifest_names_a_job_of_ours_and_the_pinned_ray():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    spec = load("jobs/rayjob.yaml")["spec"]
    assert spec["rayClusterSpec"]["rayVersion"] == pins["ray"]
    (job,) = re.findall(r"/opt/llf_ray/(\S+)", spec["entrypoint"])
    assert (ROOT / job).is_file()


def test_the_manifest_gives_the_job_settings_that_it_has_and_its_nodes_time_to_come_up():
    *command, job, folder, workers, gpus, patience = shlex.split(load("jobs/rayjob.yaml")["spec"]["entrypoint"])
    assert command == ["llf-ray", "run"]
    config = load_module(ROOT / job.removeprefix("/opt/llf_ray/")).config
    given = override(config, parse_assignments((folder, workers, gpus, patience)))
    assert given.resources.start_timeout >= 10 * config.resources.start_timeout


def test_submitting_the_clone_leaves_data_runs_and_environments_behind(tmp_path):
    """`ray job submit --working-dir .` uploads what Ray's own packager lets through."""
    packaging = pytest.importorskip("ray._private.runtime_env.packaging")
    constants = pytest.importorskip("ray._private.ray_constants")
    kept = {"jobs/seal_small.py", "llf_ray/data/sample.py", "llf_ray/plan.py", "pyproject.toml"}
    left = {
        ".git/HEAD", ".venv/bin/python", "data/cifar.bin", "llf_ray/__pycache__/plan.pyc", "mlflow.db",
        "mlruns/0/meta", "runs/a/run.json",
    }  # fmt: skip
    clone = tmp_path / "clone"
    for name in kept | left:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).touch()
    (clone / ".gitignore").write_bytes((ROOT / ".gitignore").read_bytes())

    package = tmp_path / "package.zip"
    excludes = constants.get_runtime_env_default_excludes()
    packaging.create_package(str(clone), package, include_gitignore=True, excludes=excludes)
    with zipfile.ZipFile(package) as archive:
        uploaded = {name for name in archive.namelist() if not name.endswith("/")}
    assert uploaded == kept | {".gitignore"}
