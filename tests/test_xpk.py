"""Our JobSets beside those of xpk, Google's launcher for GKE, field by field. Every difference has its reason here."""

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_kubernetes import OPTIONS, job_of

from launch.executors.kubernetes import manifest

GOLDENS = Path(__file__).parent / "goldens" / "xpk"
RUN = "d24-rf-0123456789"
TOPOLOGIES = {
    "v5p_slice": "v5p:4x4x4",
    "v6e_two_slices": "2*v6e:16x16",
    "tpu7x_slice": "tpu7x:4x4x4",
    "h100_two_nodes": "h100:2x8",
}
ALIKE = dataclasses.replace(OPTIONS, queue="multislice-queue", priority_class="medium")
_KEYS = {"env": "name", "volumes": "name", "volumeMounts": "mountPath", "tolerations": "key", "ports": "containerPort"}
"""What tells entries of a list apart; others count."""

_SHORT = {
    "spec.replicatedJobs[0].template.spec.template.spec.containers[0].": "box.",
    "spec.replicatedJobs[0].template.spec.template.": "pod.",
    "spec.replicatedJobs[0].template.spec.": "job.",
}
"""How the tables below begin paths."""

EVERYWHERE = {
    "metadata.namespace": "xpk gives it to kubectl",
    "metadata.labels.(mmdit-.*|xpk.google.com/workload)": "each tells its own objects apart by labels of its own",
    "metadata.annotations.mmdit-.*": "exact words, that no label can hold",
    "pod.metadata.(labels|annotations).(mmdit-.*|xpk.google.com/workload)": "the same on pods",
    "spec.ttlSecondsAfterFinished": "a week, not twelve hours: status tells why a run ended",
    "spec.failurePolicy.restartStrategy": "no pod of an attempt saves beside the next",
    r"spec.failurePolicy.rules\[\d\]\..*": "ours tells preemptions, bugs and infrastructure apart; xpk all others",
    r"job.podFailurePolicy.rules\[\d\]\..*": "the same, of exit codes (xpk: 42 and 127 to 255 may go on)",
    r"spec.replicatedJobs\[0\].name": "a shorter name leaves more of 63 letters to the run's",
    "job.completionMode": "JobSet's default, said",
    "box.name": "ours has one name on all machines",
    r"box.command\[\d\]": "the words themselves; xpk wraps them in bash, which has to pass SIGTERM on",
    r"box.env\[MMDIT_.*\].*": "what our processes are told",
    "box.securityContext.privileged": "needed before GKE 1.28 only; option privileged",
    r"box.volumeMounts\[/data\]\..*": "the studies' volume",
    r"pod.spec.volumes\[volume-0\]\..*": "the studies' volume",
    r"pod.spec.imagePullSecrets\[0\].name": "xpk writes None; a service account has such secrets",
}
TPU = {
    r"box.ports\[\d+\].containerPort": "GKE wants them named; xpk relies on the host network",
    r"box.volumeMounts\[/dev/shm\].name": "the same shared memory by another name",
    r"pod.spec.volumes\[(shared-memory|dshm-2)\]\..*": "the same shared memory by another name",
    "pod.spec.schedulerName": "the default, said",
}
ONE_SLICE = {
    "pod.spec.(hostNetwork|dnsPolicy)": "faster between slices, and there are none; option host_network",
}
PLACED = {
    "pod.spec.nodeSelector.cloud.google.com/placement-policy-name": "a policy that xpk creates in its own clusters; "
    "option node_labels",
}
GPU = {
    "pod.spec.nodeSelector.cloud.google.com/gke-accelerator": "xpk's clusters have one kind of nodes",
    "pod.spec.dnsPolicy": "of the host network, which xpk does not ask for here",
    "pod.spec.serviceAccountName": "xpk creates one",
    r"pod.spec.tolerations\[user-workload\]\..*": "a taint of xpk's own clusters",
    r"box.ports\[8476\].containerPort": "JAX's coordinator",
    r"box.env\[(JAX_|JOBSET_NAME|REPLICATED_JOB_NAME|NNODES|NODE_RANK|GPUS_PER_NODE|COMMAND).*\].*": "scripts "
    "make the coordinator's address of it; ours is made already",
    "box.imagePullPolicy": "an image is named by its digest, which never changes",
    r"box.volumeMounts\[/dev/shm\].name": "the same shared memory by another name",
    r"pod.spec.volumes\[(shared-memory|dshm)\]\..*": "the same, not limited to 128 GiB",
    # What GPUDirect-TCPX needs of a cluster's own networks and hosts; docs/clusters.md says how to add it.
    r"pod.spec.initContainers\[0\]\..*": "GPUDirect",
    "pod.metadata.annotations.(devices|networking).gke.io/.*": "GPUDirect",
    "pod.metadata.annotations.kueue.x-k8s.io/podset-preferred-topology": "Kueue's placement, where it is set up",
    r"box.env\[(USE_GPUDIRECT|LD_LIBRARY_PATH)\].*": "GPUDirect; GKE mounts the driver's libraries by itself",
    r"box.volumeMounts\[(/tmp|/usr/local/nvidia/lib64)\].*": "GPUDirect",
    r"pod.spec.volumes\[(libraries|sys|proc-sys|tcpx-socket)\]\..*": "GPUDirect",
}
REASONS = {
    "v5p_slice": EVERYWHERE | TPU | ONE_SLICE,
    "v6e_two_slices": EVERYWHERE | TPU,
    "tpu7x_slice": EVERYWHERE | TPU | ONE_SLICE | PLACED,
    "h100_two_nodes": EVERYWHERE | GPU,
}


def flat(value: Any, path: str = "", key: str = "") -> dict[str, Any]:
    """Path -> value of all that is not empty; a list of numbers is one value."""
    if isinstance(value, dict):
        parts = [(f"{path}.{name}" if path else str(name), name, inner) for name, inner in value.items()]
    elif isinstance(value, list) and not all(isinstance(item, int) for item in value):
        entries = [(item[_KEYS[key]] if key in _KEYS else index, item) for index, item in enumerate(value)]
        parts = [(f"{path}[{name}]", "", inner) for name, inner in entries]
    else:
        return {} if value in (None, []) else {path: value}
    return {where: inner for part, name, item in parts for where, inner in flat(item, part, name).items()}


def paths_of(document: Any) -> dict[str, Any]:
    """``flat``, with short beginnings."""
    found = flat(document)
    for long, short in _SHORT.items():
        found = {path.replace(long, short): value for path, value in found.items()}
    return found


def differences(ours: Any, theirs: Any) -> set[str]:
    one, other = paths_of(ours), paths_of(theirs)
    return {path for path in one | other if one.get(path) != other.get(path)}


def unexplained(paths: set[str], reasons: dict[str, str]) -> tuple[set[str], set[str]]:
    """Differences without a reason, and reasons without a difference."""
    used = {pattern: {path for path in paths if re.fullmatch(pattern, path)} for pattern in reasons}
    return paths - set().union(*used.values()), {pattern for pattern, found in used.items() if not found}


def both(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return manifest(job_of(TOPOLOGIES[name]), RUN, ALIKE), yaml.safe_load((GOLDENS / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_difference_from_xpk_has_a_reason_and_every_reason_a_difference(name):
    assert unexplained(differences(*both(name)), REASONS[name]) == (set(), set())


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_what_makes_a_machine_is_the_same(name):
    """The comparison has something to compare: these are in both, and equal."""
    ours, theirs = (paths_of(item) for item in both(name))
    same = {path for path in ours if ours[path] == theirs.get(path)}
    chip = "nvidia.com/gpu" if name == "h100_two_nodes" else "google.com/tpu"
    assert {
        "metadata.name",
        "metadata.labels.kueue.x-k8s.io/queue-name",
        "spec.failurePolicy.maxRestarts",
        "spec.replicatedJobs[0].replicas",
        *(f"job.{field}" for field in ("parallelism", "completions", "backoffLimit")),
        *(f"pod.spec.{field}" for field in ("restartPolicy", "terminationGracePeriodSeconds", "priorityClassName")),
        "box.image",
        f"box.resources.limits.{chip}",
        f"pod.spec.tolerations[{chip}].operator",
    } <= same
    if chip == "google.com/tpu":
        assert {
            f"pod.spec.nodeSelector.cloud.google.com/gke-tpu-{what}" for what in ("accelerator", "topology")
        } <= same
        assert "metadata.annotations.alpha.jobset.sigs.k8s.io/exclusive-topology" in same


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "nodeSelector", "cloud.google.com/gke-tpu-topology"), "4x4x8"),
        (("spec", "containers", 0, "resources", "limits", "google.com/tpu"), 8),
        (("spec", "restartPolicy"), "OnFailure"),
        (("spec", "tolerations"), []),
        (("spec", "hostPID"), True),
    ],
)
def test_the_comparison_can_fail(path, value):
    ours, theirs = both("v5p_slice")
    changed = copy.deepcopy(ours)
    inner = changed["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    assert unexplained(differences(changed, theirs), REASONS["v5p_slice"])[0]
    assert unexplained(differences(ours, theirs), REASONS["v5p_slice"] | {"spec.suspend": "none"})[1] == {
        "spec.suspend"
    }
