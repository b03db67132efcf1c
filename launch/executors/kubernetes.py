"""Runs as JobSets of Kubernetes, queued by Kueue: a job and its options in, manifests out. Nothing is submitted here.

One JobSet a run. A slice of TPUs is one child Job whose pods are its hosts; nodes of GPUs are one Job in all.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import PurePosixPath
from typing import Any

from launch.executors import kubernetes_machines as machines
from launch.executors.job import Job
from launch.executors.kubernetes_options import Kubernetes, is_bucket
from launch.executors.kubernetes_policy import failure_policy, pod_failure_policy
from launch.executors.kubernetes_yaml import as_yaml
from mmdit_jax.errors import UserError

CONTAINER = "train"
RUN, STUDY, ROOT = "mmdit-run", "mmdit-study", "mmdit-root"
"""Labels, and but for the last annotations with the exact words."""
FOLDER = "mmdit-folder"
"""Annotation: the study's folder."""
KEEP_SECONDS = 7 * 24 * 3600
"""How long a JobSet that ended can still be asked why."""
COORDINATOR_PORT = 8476
TPU_PORTS = (8471, 8080, 8431)
"""Between hosts of a slice, between slices, metrics that GKE collects."""
LONGEST_NAME = 42
"""Of a JobSet: a pod's name ``<it>-slice-<3 digits>-<4 digits>-<5 letters>`` may have 63 characters, JobSet says."""


def render(job: Job, options: Kubernetes) -> str:
    """All manifests of a job as one YAML text, a document a run; the same for the same job.

    Raises:
      UserError: what the job asks for isn't to be had on Kubernetes.
    """
    return "".join(f"---\n{as_yaml(manifest(job, run_id, options))}" for run_id in job.runs)


def manifest(job: Job, run_id: str, options: Kubernetes) -> dict[str, Any]:
    """The JobSet of one run.

    Raises:
      UserError: GKE has no such machine, or how many runs go at once is given, which Kueue's quota decides.
    """
    if job.at_once is not None:
        raise UserError(f"at_once={job.at_once}: on Kubernetes the quota of Kueue's queue decides; leave it out")
    target = job.machine.target
    pods = machines.hosts_per_slice(job.machine)
    slices = 1 if target is None else target.slices
    name = jobset_name(job.folder, job.study, run_id, options)
    labels = {RUN: as_label(run_id), STUDY: as_label(job.study), ROOT: root_label(job.folder, options)}
    annotations = {RUN: run_id, STUDY: job.study, FOLDER: job.folder}
    queue = {} if options.queue is None else {"kueue.x-k8s.io/queue-name": options.queue}
    # Each slice in a node pool of its own. Slices of one host share a pool with other runs.
    exclusive = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    tpu_slices = target is not None and target.is_tpu and pods > 1
    fuse = {"gke-gcsfuse/volumes": "true"} if any(is_bucket(source) for source, _ in options.volumes) else {}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            "namespace": options.namespace,
            "labels": {**labels, **queue},
            "annotations": {**annotations, **(exclusive if tpu_slices else {})},
        },
        "spec": {
            "ttlSecondsAfterFinished": KEEP_SECONDS,
            "failurePolicy": failure_policy(job.retries),
            "replicatedJobs": [
                {
                    "name": "slice",
                    "replicas": slices,
                    "template": {
                        "spec": {
                            "parallelism": pods,
                            "completions": pods,
                            "completionMode": "Indexed",
                            "backoffLimit": 0,
                            "podFailurePolicy": pod_failure_policy(CONTAINER),
                            "template": {
                                "metadata": {"labels": labels, "annotations": {**annotations, **fuse}},
                                "spec": _pod(job, run_id, name, options),
                            },
                        }
                    },
                }
            ],
        },
    }


def jobset_name(folder: str, study: str, run_id: str, options: Kubernetes) -> str:
    """One name for one run under one root, whatever job it came in: the API server has a single object of it."""
    digest = _digest(root_label(folder, options), run_id)[:8]
    words = re.sub(r"[^a-z0-9]+", "-", f"{study}-{run_id}".lower()).strip("-")
    words = words if words[:1].isalpha() else f"run-{words}"  # DNS-1035, which Services want
    return f"{words[: LONGEST_NAME - len(digest) - 1].rstrip('-')}-{digest}"


def root_label(folder: str, options: Kubernetes) -> str:
    """Tells a study's folder from others of the namespace: the same path may lie on two volumes."""
    return _digest(volume_of(folder, options) or "", folder)[:16]


def volume_of(folder: str, options: Kubernetes) -> str | None:
    """The volume that holds the folder, or the store of its URL; none: it would be gone with its pod."""
    if "://" in folder:
        return folder.split("/", 3)[2]
    mount = mount_of(folder, options)
    return None if mount is None else mount[0]


def mount_of(folder: str, options: Kubernetes) -> tuple[str, str] | None:
    """The (volume, its folder in pods) that holds the folder; none of a URL."""
    inside = [item for item in options.volumes if PurePosixPath(folder).is_relative_to(item[1])]
    return max(inside, key=lambda item: len(item[1]), default=None)


def as_label(text: str) -> str:
    """The value of a label: itself where it may be one, else its start and a hash."""
    if re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", text):
        return text
    start = re.sub(r"[^A-Za-z0-9]+", "-", text)[:50].strip("-")
    return f"{start or 'x'}-{_digest(text)[:8]}"


def literal(word: str) -> str:
    """A word as commands and variables of containers take it: the kubelet reads ``$(NAME)``, and ``$$`` as ``$``."""
    return word.replace("$", "$$")


def _pod(job: Job, run_id: str, name: str, options: Kubernetes) -> dict[str, Any]:
    target = job.machine.target
    resource = machines.resource_of(target)
    is_tpu = resource == machines.TPU_RESOURCE
    mounts = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    # Loaders and NCCL share memory between processes; a container's own /dev/shm has 64 MiB.
    volumes: list[dict[str, Any]] = [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}]
    for index, (source, folder) in enumerate(options.volumes):
        mounts.append({"name": f"volume-{index}", "mountPath": folder})
        volumes.append({"name": f"volume-{index}", **_volume(source)})
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": options.image,
        "command": [literal(word) for word in (*job.command, run_id)],
        "env": _env(job, name, options),
        "resources": _resources(job),
        "volumeMounts": mounts,
    }
    if is_tpu:
        container["ports"] = [{"containerPort": port} for port in TPU_PORTS]
    elif job.machine.nodes > 1:
        container["ports"] = [{"containerPort": COORDINATOR_PORT}]
    if options.privileged:
        container["securityContext"] = {"privileged": True}
    wanted = {**machines.node_labels(target), **({"cloud.google.com/gke-spot": "true"} if options.spot else {})}
    wanted = {key: value for key, value in {**wanted, **dict(options.node_labels)}.items() if value}
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": options.grace_seconds,
        "nodeSelector": wanted,
        "tolerations": [
            {"key": key, "operator": "Exists"}
            for key in (resource, "cloud.google.com/gke-spot" if options.spot else None)
            if key is not None
        ],
        "serviceAccountName": options.service_account,
        "priorityClassName": options.priority_class,
        "containers": [container],
        "volumes": volumes,
    }
    several_slices = is_tpu and target is not None and target.slices > 1
    if several_slices if options.host_network is None else options.host_network:
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    return {key: value for key, value in pod.items() if value not in (None, {}, [])}


def _env(job: Job, name: str, options: Kubernetes) -> list[dict[str, Any]]:
    """Variables. Of TPUs GKE gives the rest (TPU_WORKER_ID, TPU_WORKER_HOSTNAMES, MEGASCALE_*), and JAX finds it."""

    def field(path: str) -> dict[str, Any]:
        return {"valueFrom": {"fieldRef": {"fieldPath": path}}}

    values: dict[str, dict[str, Any]] = {
        "MMDIT_JOB": {"value": f"k8s:{options.namespace}/{name}"},
    }
    if job.machine.nodes > 1 and machines.resource_of(job.machine.target) == machines.TPU_RESOURCE:
        values["MMDIT_DISTRIBUTED"] = {"value": "auto"}
    elif job.machine.nodes > 1:
        values |= {
            "MMDIT_COORDINATOR": {"value": f"{name}-slice-0-0.{name}:{COORDINATOR_PORT}"},
            "MMDIT_PROCESSES": {"value": str(job.machine.processes)},
            "MMDIT_PROCESS": field("metadata.annotations['batch.kubernetes.io/job-completion-index']"),
        }
    values |= {key: {"value": literal(value)} for key, value in options.env}
    if options.secret is not None:
        values |= {
            key: {"valueFrom": {"secretKeyRef": {"name": options.secret, "key": key}}} for key in options.secret_keys
        }
    return [{"name": key, **value} for key, value in values.items()]


def _resources(job: Job) -> dict[str, Any]:
    machine = job.machine
    resource = machines.resource_of(machine.target)
    requests: dict[str, str] = {}
    if machine.cpus_per_process is not None:
        requests["cpu"] = str(machine.cpus_per_process * machine.processes_per_node)
    if machine.memory_gib is not None:
        requests["memory"] = f"{round(machine.memory_gib * 1024)}Mi"
    limits = {} if resource is None else {resource: machine.chips_per_node}
    return {key: value for key, value in {"requests": requests, "limits": limits}.items() if value}


def _volume(source: str) -> dict[str, Any]:
    if not is_bucket(source):
        return {"persistentVolumeClaim": {"claimName": source}}
    attributes = {"bucketName": source.removeprefix("gs://"), "mountOptions": "implicit-dirs"}
    return {"csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
