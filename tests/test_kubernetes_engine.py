"""Submitting to a cluster: a kubectl that is a real process, with an API server made of files."""

import concurrent.futures
import dataclasses
import json
import os

import fake_kubectl
import pytest
import yaml
from test_kubernetes import OPTIONS, job_of

from launch.executors.job import Live
from launch.executors.kubernetes import manifest
from launch.executors.kubernetes_engine import KubernetesEngine, parse_status
from mmdit_jax.errors import UserError

OTHER = "/data/other/ladder"
RUNS = ("d1-a-0000000000", "d1-b-1111111111")
JOB = job_of("v5p:4x4x4", runs=RUNS)
QUEUE = dataclasses.replace(OPTIONS, queue="tpu", namespace="research")


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    folder = tmp_path / "cluster"
    folder.mkdir()
    monkeypatch.setenv("FAKE_CLUSTER", str(folder))
    monkeypatch.setenv("PATH", f"{fake_kubectl.install(tmp_path / 'bin')}{os.pathsep}{os.environ['PATH']}")
    return folder


def change(cluster, run_id, *, spec=None, status=None, options=QUEUE, **metadata):
    """What controllers write into the JobSet of a run."""
    name = manifest(JOB, run_id, options)["metadata"]["name"]
    path = cluster / options.namespace / f"{name}.json"
    jobset = json.loads(path.read_text())
    jobset["spec"] |= spec or {}
    jobset["status"] = status or jobset.get("status", {})
    jobset["metadata"] |= metadata
    path.write_text(json.dumps(jobset))


def calls(cluster):
    return [json.loads(line) for line in (cluster / "calls.jsonl").read_text().splitlines()]


def name_of(run_id):
    return f"k8s:research/{manifest(JOB, run_id, QUEUE)['metadata']['name']}"


def test_a_job_is_submitted_once(cluster):
    engine = KubernetesEngine(JOB.folder, QUEUE)
    assert engine.submit(JOB) == f"{name_of(RUNS[0])}, {name_of(RUNS[1])}"
    written = [json.loads(path.read_text()) for path in (cluster / "research").glob("*.json")]
    expected = {item["metadata"]["name"]: item for item in yaml.safe_load_all(engine.render(JOB))}
    for jobset in written:
        del jobset["spec"]["suspend"]  # Kueue's
    assert {jobset["metadata"]["name"]: jobset for jobset in written} == expected
    assert engine.submit(JOB) == f"{name_of(RUNS[0])} (was there), {name_of(RUNS[1])} (was there)"
    assert len(list((cluster / "research").glob("*.json"))) == 2


def test_of_two_that_submit_at_once_one_adopts(cluster):
    job = dataclasses.replace(JOB, runs=RUNS[:1])
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: KubernetesEngine(JOB.folder, QUEUE).submit(job), range(4)))
    assert sorted(found) == [name_of(RUNS[0])] + 3 * [f"{name_of(RUNS[0])} (was there)"]


def test_states_of_a_run(cluster):
    engine = KubernetesEngine(JOB.folder, QUEUE)
    engine.submit(JOB)
    assert {live.state for live in engine.live().values()} == {"queued"}
    assert engine.live()[RUNS[0]].where == f"{name_of(RUNS[0])}: suspended in queue tpu"
    assert engine.live()[RUNS[0]].handle == name_of(RUNS[0]).split("/")[1]
    change(cluster, RUNS[0], spec={"suspend": False}, status={"replicatedJobsStatus": [{"name": "slice", "active": 1}]})
    assert engine.live()[RUNS[0]].state == "queued" and "no slice of 1 has all its pods" in engine.live()[RUNS[0]].where
    up = {"restarts": 2, "replicatedJobsStatus": [{"name": "slice", "ready": 1, "active": 1}]}
    change(cluster, RUNS[0], status=up)
    assert engine.live()[RUNS[0]].state == "running" and engine.live()[RUNS[0]].where.endswith(
        "1 of 1 slice up, 2 restarts"
    )
    failed = {
        "type": "Failed",
        "status": "True",
        "reason": "FailJobSetFailurePolicyAction",
        "message": "first failed job: x\n  y",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    change(cluster, RUNS[0], status={"conditions": [{"type": "Suspended", "status": "False"}, failed]})
    assert RUNS[0] not in engine.live()
    ended = engine.states()[RUNS[0]]
    assert ended.state == "ended"
    assert ended.where.endswith(": failed, FailJobSetFailurePolicyAction: first failed job: x y")
    assert ended.ended == 1767225600.0
    change(
        cluster, RUNS[1], status={"conditions": [{"type": "Completed", "status": "True", "reason": "AllJobsCompleted"}]}
    )
    assert engine.states()[RUNS[1]].state == "ended" and engine.live() == {}


def test_what_ended_makes_room(cluster):
    engine = KubernetesEngine(JOB.folder, QUEUE)
    engine.submit(JOB)
    change(cluster, RUNS[0], status={"conditions": [{"type": "Failed", "status": "True"}]})
    assert engine.submit(JOB) == f"{name_of(RUNS[0])}, {name_of(RUNS[1])} (was there)"
    waits = [call for call in calls(cluster) if call[0] == "delete"]
    assert len(waits) == 1 and {"--wait=true", "--cascade=foreground"} <= set(waits[0])


def test_cancel_takes_its_own_and_what_lives(cluster):
    engine = KubernetesEngine(JOB.folder, QUEUE)
    other = KubernetesEngine(OTHER, QUEUE)
    engine.submit(JOB)
    other.submit(dataclasses.replace(JOB, folder=OTHER))
    assert engine.cancel([RUNS[0], "no-such-run"]) == [RUNS[0]]
    assert set(engine.live()) == {RUNS[1]} and set(other.live()) == set(RUNS)
    deleted = engine.states()[RUNS[0]]
    assert (deleted.state, deleted.where) == ("ended", f"{name_of(RUNS[0])}: being deleted")
    assert engine.cancel([RUNS[0]]) == []
    assert engine.submit(JOB) == f"{name_of(RUNS[0])}, {name_of(RUNS[1])} (was there)"  # it waited for the pods


def test_the_context_and_the_namespace_are_said_each_time(cluster):
    KubernetesEngine(JOB.folder, dataclasses.replace(QUEUE, context="pod")).live()
    call = calls(cluster)[-1]
    assert call[call.index("--context") + 1] == "pod" and call[call.index("--namespace") + 1] == "research"


def test_another_object_of_the_name_is_not_adopted(cluster):
    engine = KubernetesEngine(JOB.folder, QUEUE)
    engine.submit(JOB)
    change(cluster, RUNS[0], annotations={"mmdit-run": "not-this"})
    with pytest.raises(UserError, match="another of that name"):
        engine.submit(JOB)


@pytest.mark.parametrize(
    ("mark", "options", "words"),
    [
        ("no_jobset", QUEUE, "doesn't have a resource type.*install JobSet 0.10"),
        ("old_jobset", QUEUE, "unknown field.*older than 0.10"),
        (None, dataclasses.replace(QUEUE, namespace="forbidden"), "kubectl create: .*forbidden"),
    ],
)
def test_a_cluster_that_refuses_is_told_in_a_line(cluster, mark, options, words):
    if mark:
        (cluster / mark).touch()
    with pytest.raises(UserError, match=words) as error:
        KubernetesEngine(JOB.folder, options).submit(JOB)
    assert "\n" not in str(error.value)


def test_no_kubectl_is_told_in_a_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"kubectl: not on PATH.*--dry-run"):
        KubernetesEngine(JOB.folder, QUEUE).live()
    job = dataclasses.replace(JOB, folder="s3://bucket/ladder")
    with pytest.raises(UserError, match=r"kubectl: not on PATH.*--dry-run"):
        KubernetesEngine(job.folder, QUEUE).check(job)


def test_runs_that_would_be_gone_with_their_pods_are_not_submitted(cluster):
    with pytest.raises(UserError, match=r"root='/elsewhere/ladder'.*mount a claim"):
        KubernetesEngine("/elsewhere/ladder", QUEUE).check(dataclasses.replace(JOB, folder="/elsewhere/ladder"))
    assert not (cluster / "calls.jsonl").exists()


def test_a_root_that_is_not_on_this_host_is_refused(cluster, tmp_path):
    """The volume's folder; below it, folders are made."""
    data = tmp_path / "data"
    options = dataclasses.replace(QUEUE, volumes=(("studies", str(data)), ("gs://images", "/images")))
    job = dataclasses.replace(JOB, folder=str(data / "roots" / "ladder"))
    with pytest.raises(UserError, match=f"^root='{job.folder}': volume 'studies' is at {data} in pods, but .*gs://"):
        KubernetesEngine(job.folder, options).check(job)
    data.mkdir()
    KubernetesEngine(job.folder, options).check(job)
    at_url = dataclasses.replace(JOB, folder="s3://bucket/roots/ladder")
    KubernetesEngine(at_url.folder, options).check(at_url)
    assert list(data.iterdir()) == [] and not (cluster / "calls.jsonl").exists()


def test_what_finds_it_again(cluster):
    """The context by its name; none where there is none, as in a pod. Of the volumes the one that the folder is on."""
    options = dataclasses.replace(QUEUE, volumes=(("studies", "/data"), ("gs://images", "/images")))
    found = {"namespace": "research", "context": None, "volumes": [["studies", "/data"]]}
    assert KubernetesEngine(JOB.folder, options).found_by() == found
    (cluster / "current-context").write_text("east")
    assert KubernetesEngine(JOB.folder, options).found_by() == {**found, "context": "east"}
    options = dataclasses.replace(options, context="west")
    assert KubernetesEngine("s3://bucket/ladder", options).found_by() == {**found, "context": "west", "volumes": []}


def test_of_two_jobsets_of_a_run_the_live_one_counts():
    def item(name, **status):
        metadata = {"name": name, "namespace": "n", "annotations": {"mmdit-run": "r"}}
        return {"metadata": metadata, "spec": {"replicatedJobs": [{"replicas": 2}]}, "status": status}

    dead = item("dead", conditions=[{"type": "Failed", "status": "True"}])
    live = item("live", replicatedJobsStatus=[{"name": "slice", "ready": 1}])
    foreign = {"metadata": {"name": "x", "namespace": "n"}, "spec": {"replicatedJobs": []}}
    for order in ([dead, live, foreign], [foreign, live, dead]):
        assert parse_status(json.dumps({"items": order})) == {
            "r": Live("running", "k8s:n/live: 1 of 2 slices up", "live")
        }
