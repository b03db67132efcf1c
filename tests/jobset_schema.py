"""Whether an API server would take a JobSet, without one: unknown fields fail at every level.

JobSet's own fields by the models of kubeflow_trainer_api, which are generated from JobSet's OpenAPI text; they drop
what they don't know, so names are compared here. Jobs and pods by kubernetes-validate's strict schemas. What JobSet's
webhook checks of names is written down again (kubernetes-sigs/jobset, pkg/webhooks/jobset_webhook.go).
"""

import copy
import re
import typing
from typing import Any

import kubernetes_validate
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
from pydantic import BaseModel, ValidationError

KUBERNETES = "1.33"
_LABEL = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def problems(jobset: dict[str, Any]) -> list[str]:
    """Why it would be refused; empty where it would not."""
    outside = copy.deepcopy(jobset)
    for replicated in outside["spec"]["replicatedJobs"]:
        replicated["template"] = {}  # the models' quantities (1, "2Gi") are no types of theirs
    found = _unknown(JobsetV1alpha2JobSet, outside, "")
    if (jobset.get("apiVersion"), jobset.get("kind")) != ("jobset.x-k8s.io/v1alpha2", "JobSet"):
        found.append("apiVersion and kind: not a JobSet")
    try:
        JobsetV1alpha2JobSet.model_validate(outside)
    except ValidationError as error:
        found += [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
    for replicated in jobset["spec"]["replicatedJobs"]:
        template = replicated["template"]
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": replicated["name"]}, **template}
        try:
            kubernetes_validate.validate(job, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"{replicated['name']}: {'.'.join(map(str, error.path))}: {error.message}")
        found += _long_names(jobset["metadata"]["name"], replicated)
        found += _bad_labels(template["spec"]["template"].get("metadata", {}))
    for rule in jobset["spec"].get("failurePolicy", {}).get("rules", []):
        if not re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule.get("name", "")):
            found.append(f"failurePolicy: {rule.get('name')!r} is no name of a rule")
    return found + _bad_labels(jobset["metadata"])


def _unknown(kind: type[BaseModel], value: Any, path: str) -> list[str]:
    """Fields that a model doesn't have, down to where the strict schemas of Jobs and metadata take over."""
    found: list[str] = []
    fields = {field.alias or name: field for name, field in kind.model_fields.items()}
    for key, inner in value.items():
        if key not in fields:
            found.append(f"{path}{key}: unknown field")
            continue
        for part in _models(fields[key].annotation):
            for item in inner if isinstance(inner, list) else [inner]:
                found += _unknown(part, item, f"{path}{key}.")
    return found


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models(part)]


def _long_names(jobset: str, replicated: dict[str, Any]) -> list[str]:
    job = f"{jobset}-{replicated['name']}-{replicated['replicas'] - 1}"
    pod = f"{job}-{replicated['template']['spec']['completions'] - 1}-abcde"
    return [f"{name}: no DNS label of at most 63" for name in (jobset, job, pod) if not _is_name(name)]


def _is_name(name: str) -> bool:
    return len(name) <= 63 and _DNS_1035.fullmatch(name) is not None


def _bad_labels(metadata: dict[str, Any]) -> list[str]:
    labels = metadata.get("labels", {})
    bad = {key: value for key, value in labels.items() if not (_LABEL.fullmatch(value) and len(value) <= 63)}
    # Annotations are free in what they say, but not in their type.
    bad |= {key: value for key, value in metadata.get("annotations", {}).items() if not isinstance(value, str)}
    return [f"{key}={value!r}: no label" for key, value in bad.items()]
