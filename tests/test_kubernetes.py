"""Manifests for Kubernetes: goldens that a strict schema takes, words, names, secrets, machines, refused inputs.

After a change that is meant, ``REGENERATE=1 pytest tests/test_kubernetes.py`` writes the goldens anew.
"""

import copy
import dataclasses
import os
import re
from pathlib import Path

import pytest
import yaml
from jobset_schema import problems

from launch.executors.job import Job, Machine
from launch.executors.kubernetes import LONGEST_NAME, Kubernetes, as_label, jobset_name, manifest, render
from launch.executors.kubernetes_machines import machine_for
from launch.planning.target import parse
from mmdit_jax.errors import UserError

PACKAGES = Path(__file__).parent.parent
GOLDENS = Path(__file__).parent / "goldens" / "kubernetes"
OPTIONS = Kubernetes(image="us-docker.pkg.dev/p/r/mmdit@sha256:0", volumes=(("studies", "/data"),))


def job_of(topology: str | None = None, **changes) -> Job:
    machine = machine_for(None if topology is None else parse(topology))
    job = Job(
        "ladder-1", "ladder", ("d24-rf-0123456789",), ("mmdit", "train", "ladder"), "/data/ladder", machine=machine
    )
    return dataclasses.replace(job, **changes)


def container_of(document) -> dict:
    return pod_of(document)["containers"][0]


def pod_of(document) -> dict:
    return document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def variables_of(document) -> dict:
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in container_of(document)["env"]}


FULL = dataclasses.replace(
    OPTIONS,
    namespace="research",
    queue="tpu",
    secret="wandb",
    service_account="trainer",
    priority_class="high",
    volumes=(("studies", "/data"), ("gs://images", "/images")),
    grace_seconds=120,
    env=(("WANDB_MODE", "online"), ("NOTE", "$(HOME) costs $5")),
    spot=True,
)
CASES = {
    "v5p_slice": (job_of("v5p:4x4x4"), OPTIONS),
    "v6e_two_slices": (job_of("2*v6e:16x16"), FULL),
    "v5e_one_host": (job_of("v5e:2x4", runs=("d1-a-0000000000", "d1-b-1111111111")), OPTIONS),
    "h100_two_nodes": (job_of("h100:2x8"), FULL),
    "b200_one_node": (job_of("b200:1x8"), OPTIONS),
    "cpus": (job_of(machine=Machine(cpus_per_process=4, memory_gib=1.5), retries=0), OPTIONS),
}


@pytest.mark.parametrize("name", CASES)
def test_a_manifest_is_the_golden_one_and_an_api_server_would_take_it(name):
    job, options = CASES[name]
    text = render(job, options)
    path = GOLDENS / f"{name}.yaml"
    if os.environ.get("REGENERATE"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()
    documents = list(yaml.safe_load_all(text))
    assert documents == [manifest(job, run_id, options) for run_id in job.runs]
    assert [problem for document in documents for problem in problems(document)] == []
    assert len({document["metadata"]["name"] for document in documents}) == len(job.runs)


def _plant(document, *path):
    """A copy with one field more in the object at this path."""
    document = copy.deepcopy(document)
    inner = document
    for key in path:
        inner = inner[key]
    inner["mispelt"] = 1
    return document


_JOB = ("spec", "replicatedJobs", 0, "template", "spec")


@pytest.mark.parametrize(
    "path",
    [
        (),
        ("spec",),
        ("spec", "failurePolicy"),
        ("spec", "failurePolicy", "rules", 0),
        ("spec", "replicatedJobs", 0),
        ("spec", "replicatedJobs", 0, "template"),
        _JOB,
        (*_JOB, "podFailurePolicy", "rules", 0, "onExitCodes"),
        (*_JOB, "template", "spec"),
        (*_JOB, "template", "spec", "containers", 0),
        (*_JOB, "template", "spec", "containers", 0, "env", 0),
        (*_JOB, "template", "spec", "volumes", 0, "emptyDir"),
    ],
    ids=lambda path: ".".join(map(str, path)) or "top",
)
def test_the_schema_refuses_a_misspelt_field_at_every_level(path):
    document = manifest(*_first(CASES["v6e_two_slices"]))
    assert problems(document) == []
    assert any("mispelt" in problem for problem in problems(_plant(document, *path)))


def test_the_schema_refuses_wrong_types_and_long_names():
    document = manifest(*_first(CASES["v6e_two_slices"]))
    document["spec"]["failurePolicy"]["maxRestarts"] = "3"
    document["metadata"]["name"] = "x" * 50
    document["metadata"]["labels"]["mmdit-run"] = "a/b"
    assert len(problems(document)) == 3


def _first(case):
    return case[0], case[0].runs[0], case[1]


def expanded(text: str, variables: dict[str, str]) -> str:
    """As the kubelet reads words of a command: ``$(NAME)`` where there is such a variable, ``$$`` is ``$``."""
    return re.sub(
        r"\$(\$|\(([^)]*)\))",
        lambda match: "$" if match[1] == "$" else variables.get(match[2], match[0]),
        text,
    )


WORDS = (
    *("two words", "it's", 'say "x"', "$(HOME)", "$$(HOME)", "$HOME", "a$", "$$", "`id`", "; rm -rf /", "back\\slash"),
    *("", "*", "#no comment", "{a: b}", "é ✓", "tab\there", "line\nbreak", "--flag=$(MMDIT_JOB)", "%s", "&&", "~"),
    *("1e5", "0x1F", "0o17", "017", "1_000", "y", "No", "null", "12:30:45", "2026-01-01", ".inf", "-", "? a", "true"),
)


def test_words_of_a_command_arrive_as_they_are():
    job = job_of("v5p:4x4x4", command=("mmdit", *WORDS), runs=("$(RUN)",))
    options = dataclasses.replace(OPTIONS, env=(("NOTE", "$(HOME) and $$"),))
    document = yaml.safe_load(render(job, options))
    container = container_of(document)
    variables = {"HOME": "/root", "MMDIT_JOB": "x", "RUN": "y"}
    assert [expanded(word, variables) for word in container["command"]] == ["mmdit", *WORDS, "$(RUN)"]
    assert expanded(variables_of(document)["NOTE"], variables) == "$(HOME) and $$"
    assert "args" not in container  # no shell, nothing is split


def test_go_reads_no_string_of_the_yaml_as_something_else():
    """Plain scalars that are strings to Python begin with a letter, and are no word that means a value to anyone."""
    text = render(job_of("v5p:4x4x4", command=WORDS), OPTIONS)
    plain = [event for event in yaml.parse(text) if isinstance(event, yaml.ScalarEvent) and event.style is None]
    for event in plain:
        is_string = isinstance(yaml.safe_load(event.value), str)
        assert not is_string or re.fullmatch(r"[A-Za-z][-A-Za-z0-9./_]+", event.value), event.value
        assert event.value.lower() not in {"y", "n", "yes", "no", "on", "off", "null"}


def test_secrets_are_named_and_never_written(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "s3cret")
    options = dataclasses.replace(OPTIONS, secret="wandb", secret_keys=("WANDB_API_KEY", "HF_TOKEN"))
    text = render(job_of("v5p:4x4x4"), options)
    assert "s3cret" not in text
    variables = variables_of(yaml.safe_load(text))
    assert variables["HF_TOKEN"] == {"secretKeyRef": {"name": "wandb", "key": "HF_TOKEN"}}
    assert "WANDB_API_KEY" not in variables_of(manifest(*_first(CASES["v5p_slice"])))


@pytest.mark.parametrize(
    "name", ["WANDB_API_KEY", "hf_token", "MY_SECRET", "DB_PASSWORD", "AWS_SECRET_ACCESS_KEY", "APIKEY"]
)
def test_a_variable_that_looks_secret_is_refused(name):
    with pytest.raises(UserError, match="put it into a Secret") as error:
        Kubernetes(image="i", env=((name, "v4lue"),))
    assert "v4lue" not in str(error.value)


def test_harmless_names_pass():
    Kubernetes(image="i", env=(("TOKENIZERS_PARALLELISM", "false"), ("KEYBOARD", "x"), ("XLA_FLAGS", "")))


def test_how_processes_find_one_another():
    tpu = variables_of(manifest(*_first(CASES["v6e_two_slices"])))
    assert tpu["MMDIT_DISTRIBUTED"] == "auto" and not {"MMDIT_COORDINATOR", "MMDIT_PROCESS"} & set(tpu)
    job, run_id, options = _first(CASES["h100_two_nodes"])
    document = manifest(job, run_id, options)
    gpu, name = variables_of(document), document["metadata"]["name"]
    assert gpu["MMDIT_COORDINATOR"] == f"{name}-slice-0-0.{name}:8476" and gpu["MMDIT_PROCESSES"] == "2"
    assert "job-completion-index" in gpu["MMDIT_PROCESS"]["fieldRef"]["fieldPath"]
    assert "MMDIT_DISTRIBUTED" not in gpu
    assert gpu["MMDIT_JOB"] == f"k8s:research/{name}"
    for alone in ("v5e_one_host", "b200_one_node", "cpus"):
        ours = {key for key in variables_of(manifest(*_first(CASES[alone]))) if key.startswith("MMDIT_")}
        assert ours == {"MMDIT_JOB"}


@pytest.mark.parametrize("name", CASES)
def test_somebody_reads_each_variable_of_ours(name):
    sources = [PACKAGES / "launch" / "hold.py", *(PACKAGES / "mmdit_jax").rglob("*.py")]
    text = "\n".join(path.read_text() for path in sources)
    given = [key for key in variables_of(manifest(*_first(CASES[name]))) if key.startswith("MMDIT_")]
    assert given and all(f'"{key}"' in text for key in given)


@pytest.mark.parametrize("name", CASES)
def test_what_pods_may_do_with_their_node(name):
    """The nodes' own network where it is said, and where it is not only between slices of TPUs."""
    job, run_id, options = _first(CASES[name])
    for told, expected in ((None, name == "v6e_two_slices"), (True, True), (False, False)):
        for privileged in (False, True):
            changed = dataclasses.replace(options, host_network=told, privileged=privileged)
            document = manifest(job, run_id, changed)
            assert problems(document) == []
            pod = pod_of(document)
            assert (pod.get("hostNetwork", False), "dnsPolicy" in pod) == (expected, expected)
            assert container_of(document).get("securityContext") == ({"privileged": True} if privileged else None)


@pytest.mark.parametrize("study", ["a", "7up", "ladder_of.all", "S" * 200, "-", "ü"])
@pytest.mark.parametrize("run_id", ["r-0123456789", "R." * 90 + "x", "--", "0"])
def test_names_fit_however_long_the_study_and_the_largest_machine(study, run_id):
    job = job_of("100*v5p:16x16x4", study=study, runs=(run_id,), folder=f"/data/{study}")
    document = manifest(job, run_id, OPTIONS)
    assert problems(document) == []
    assert len(document["metadata"]["name"]) <= LONGEST_NAME
    assert document["metadata"]["annotations"]["mmdit-run"] == run_id
    assert document["metadata"]["annotations"]["mmdit-study"] == study


def test_a_name_is_the_runs_own_under_its_root():
    def name(folder="/data/ladder", run="r-0", volumes=(("studies", "/data"),), **options):
        return jobset_name(folder, "ladder", run, dataclasses.replace(OPTIONS, volumes=volumes, **options))

    assert name() == name(env=(("A", "b"),), queue="tpu", grace_seconds=1)
    others = [name(run="r-1"), name(folder="/data/x/ladder"), name(volumes=(("other", "/data"),)), name(run="R-0")]
    assert len({name(), *others}) == 5
    assert name(volumes=(("studies", "/data"), ("gs://bucket", "/b"))) == name()  # another mount is no other root
    assert as_label("a") == "a" and as_label("a/b") != as_label("a b")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: render(job_of(machine=Machine(parse("v5p:4x4x4"), nodes=3)), OPTIONS), "nodes=3.*has 16"),
        (lambda: render(job_of(machine=Machine(parse("h100:2x8"), 2, 8)), OPTIONS), "processes_per_node=8"),
        (lambda: render(job_of("v5p:4x4x4", at_once=2), OPTIONS), "at_once=2.*quota"),
        (lambda: Kubernetes(image=""), "image=''"),
        (lambda: Kubernetes(image="a b"), "image='a b'"),
        (lambda: Kubernetes(image="i", namespace="A_b"), "namespace='A_b'"),
        (lambda: Kubernetes(image="i", queue="My Queue"), "queue='My Queue'"),
        (lambda: Kubernetes(image="i", volumes=(("a b", "/data"),)), "volume='a b:/data'"),
        (lambda: Kubernetes(image="i", volumes=(("a", "/data"), ("b", "/data"))), "volume='/data': given twice"),
        (lambda: Kubernetes(image="i", grace_seconds=-1), "grace_seconds=-1"),
        (lambda: Kubernetes(image="i", volumes=(("claim", "data"),)), "volume='claim:data'"),
        (lambda: Kubernetes(image="i", volumes=(("gs://", "/data"),)), "volume='gs://:/data'"),
        (lambda: Kubernetes(image="i", env=(("MMDIT_JOB", "x"),)), "MMDIT_JOB"),
        (lambda: Kubernetes(image="i", env=(("A-B", "x"),)), "A-B"),
        (lambda: Kubernetes(image="i", env=(("A", "x"), ("A", "y"))), "env='A': given twice"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(make, words):
    with pytest.raises(UserError, match=words) as error:
        make()
    assert "\n" not in str(error.value)
