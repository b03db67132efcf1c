"""Submits, lists and cancels JobSets through kubectl. The cluster knows what lives; run directories, what is done."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from launch.executors.job import ENDED, QUEUED, RUNNING, Job, Live, in_hands
from launch.executors.kubernetes import ROOT, RUN, Kubernetes, manifest, mount_of, render, root_label, volume_of
from launch.executors.kubernetes_yaml import as_yaml
from mmdit_jax.errors import UserError

REQUEST_SECONDS = 60
_KIND = "jobsets.jobset.x-k8s.io"
_TRIES = 3
_NO_KUBECTL = "kubectl: not on PATH; install it, or take what --dry-run prints to where it is: kubectl create -f FILE"
_HINTS = {
    "the server doesn't have a resource type": "install JobSet 0.10 or later in the cluster",
    'no matches for kind "JobSet"': "install JobSet 0.10 or later in the cluster",
    "unknown field": "the cluster's JobSet is older than 0.10; upgrade it",
    'namespaces "': "create the namespace, or name another",
}


def parse_status(text: str) -> dict[str, Live]:
    """By run id, what ``kubectl get jobsets -o json`` printed; of two JobSets of a run the live one.

    ``queued``: suspended, or no slice has all its pods. Where: ``k8s:NAMESPACE/NAME``, and how it stands.
    """
    found: dict[str, Live] = {}
    for item in json.loads(text)["items"]:
        run_id = item["metadata"].get("annotations", {}).get(RUN)
        if run_id is not None and run_id not in in_hands(found):
            found[run_id] = _state(item)
    return found


class KubernetesEngine:
    """The runs of one study's folder in one namespace of the cluster that this host's kubectl speaks to."""

    name = "k8s"

    def __init__(self, folder: str, options: Kubernetes) -> None:
        """``folder`` as ``Job.folder``: the study's, as pods see it."""
        self._folder, self._options = folder, options

    def render(self, job: Job) -> str:
        return render(job, self._options)

    def found_by(self) -> dict[str, Any]:
        """The context by its name, also where it is kubectl's current one: that changes."""
        context = self._options.context
        if context is None:
            done = self._call("config", "current-context")
            context = done.stdout.strip() or None if done.returncode == 0 else None  # in a pod there is none
        mount = mount_of(self._folder, self._options)
        volumes = [] if mount is None else [list(mount)]
        return {"namespace": self._options.namespace, "context": context, "volumes": volumes}

    def check(self, job: Job) -> None:
        """Refuse a job that can't be had (see ``manifest``), and a root that pods and this host don't share.

        What is done is read from the root before anything is submitted, so it must be here, too.
        """
        self.render(job)
        if volume_of(job.folder, self._options) is None:
            raise UserError(
                f"root={job.folder!r}: on no volume, so runs would be gone with their pods; mount a claim there"
            )
        mount = mount_of(job.folder, self._options)
        if mount is not None and not Path(mount[1]).is_dir():
            raise UserError(
                f"root={job.folder!r}: volume {mount[0]!r} is at {mount[1]} in pods, but this host has no {mount[1]}; "
                "mount the same file system there, or give --root a URL (gs://BUCKET/FOLDER)"
            )
        if shutil.which("kubectl") is None:
            raise UserError(_NO_KUBECTL)

    def submit(self, job: Job) -> str:
        """Create the JobSets that aren't there, and return what they are called.

        The API server has one object of a name, so of two that submit the same run one adopts the other's. What ended
        makes room for a new one.

        Raises:
          UserError: kubectl refuses.
        """
        documents = {run_id: manifest(job, run_id, self._options) for run_id in job.runs}
        return ", ".join(self._create(run_id, document) for run_id, document in documents.items())

    def states(self) -> dict[str, Live]:
        """All that the cluster still knows of this folder, by run id: what ended, and why, too.

        Raises:
          UserError: kubectl is missing or refuses.
        """
        selector = f"{ROOT}={root_label(self._folder, self._options)}"
        return parse_status(self._kubectl("get", _KIND, "-l", selector, "-o", "json"))

    def live(self) -> Mapping[str, Live]:
        """Runs that wait or run there, by run id."""
        return in_hands(self.states())

    def cancel(self, runs: Sequence[str]) -> list[str]:
        """Delete those that wait or run, and return them. Their pods get SIGTERM and the grace they were given."""
        names = {run_id: live.handle for run_id, live in self.live().items() if run_id in runs}
        if names:
            # In the foreground: the JobSet is there until its pods are gone, so that no second one starts beside them.
            flags = ("--ignore-not-found", "--cascade=foreground", "--wait=false")
            self._kubectl("delete", _KIND, *names.values(), *flags)
        return list(names)

    def _create(self, run_id: str, document: dict[str, Any]) -> str:
        name = document["metadata"]["name"]
        where = f"k8s:{self._options.namespace}/{name}"
        for _ in range(_TRIES):
            done = self._call("create", "-f", "-", "--validate=strict", text=as_yaml(document))
            if done.returncode == 0:
                return where
            if "(AlreadyExists)" not in done.stderr:
                self._refuse("create", done)
            there = self._kubectl("get", _KIND, name, "--ignore-not-found", "-o", "json")
            if not there.strip():
                continue  # it went in between
            item = json.loads(there)
            owner = item["metadata"].get("labels", {}).get(ROOT), item["metadata"].get("annotations", {}).get(RUN)
            if owner != (document["metadata"]["labels"][ROOT], run_id):
                raise UserError(f"{where}: there is another of that name that is not this run; delete it")
            if _state(item).state != ENDED:
                return f"{where} (was there)"
            patience = f"--timeout={self._options.grace_seconds + 2 * REQUEST_SECONDS}s"
            self._kubectl("delete", _KIND, name, "--ignore-not-found", "--cascade=foreground", "--wait=true", patience)
        raise UserError(f"{where}: deleted {_TRIES} times, and each time there again; who else submits it?")

    def _kubectl(self, *arguments: str) -> str:
        done = self._call(*arguments)
        if done.returncode != 0:
            self._refuse(arguments[0], done)
        return done.stdout

    def _call(self, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        common = ["--namespace", self._options.namespace]
        if self._options.context is not None:
            common += ["--context", self._options.context]
        if arguments[0] != "delete":  # which waits
            common.append(f"--request-timeout={REQUEST_SECONDS}s")
        try:
            return subprocess.run(
                ["kubectl", *arguments, *common], input=text, capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            raise UserError(_NO_KUBECTL) from None

    def _refuse(self, verb: str, done: subprocess.CompletedProcess[str]) -> NoReturn:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("Warning:")]
        text = re.sub(r"^error: |^Error from server ", "", lines[-1].strip() if lines else f"exit {done.returncode}")
        hint = next((f"; {hint}" for words, hint in _HINTS.items() if words in done.stderr), "")
        raise UserError(f"kubectl {verb}: {text}{hint}")


def _seconds(told: str | None) -> float | None:
    """Since 1970, of a time as the API server writes it."""
    return None if told is None else datetime.fromisoformat(told).timestamp()


def _state(item: dict[str, Any]) -> Live:
    metadata, status = item["metadata"], item.get("status", {})
    where = f"k8s:{metadata['namespace']}/{metadata['name']}"

    def stands(state: str, how: str, ended: str | None = None) -> Live:
        return Live(state, f"{where}: {how}", metadata["name"], _seconds(ended))

    if "deletionTimestamp" in metadata:
        return stands(ENDED, "being deleted", metadata["deletionTimestamp"])
    for condition in status.get("conditions", []):
        if condition["type"] in ("Completed", "Failed") and condition["status"] == "True":
            reason = ": ".join(condition[key] for key in ("reason", "message") if condition.get(key))
            how = condition["type"].lower() + (f", {' '.join(reason.split())}" if reason else "")
            return stands(ENDED, how, condition.get("lastTransitionTime"))
    restarts = status.get("restarts", 0)
    again = f", {restarts} restart{'s' if restarts > 1 else ''}" if restarts else ""
    if item["spec"].get("suspend"):
        queue = metadata.get("labels", {}).get("kueue.x-k8s.io/queue-name")
        return stands(QUEUED, "suspended" + (f" in queue {queue}" if queue else "") + again)
    jobs = status.get("replicatedJobsStatus", [])
    wanted = sum(job.get("replicas", 1) for job in item["spec"]["replicatedJobs"])
    ready = sum(job.get("ready", 0) for job in jobs)
    if ready + sum(job.get("succeeded", 0) + job.get("failed", 0) for job in jobs) == 0:
        return stands(QUEUED, f"no slice of {wanted} has all its pods yet{again}")
    return stands(RUNNING, f"{ready} of {wanted} slice{'s' if wanted > 1 else ''} up{again}")
