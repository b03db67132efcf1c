"""``study submit --executor k8s``, and what ``status`` and ``cancel`` make of it, in several clusters at once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import fake_kubectl
import pytest
import yaml
from jobset_schema import problems
from submit_cases import ATTEMPT, FAILED, START, SUBMIT, Site, site_in

FAILURE = {
    "type": "Failed",
    "status": "True",
    "reason": "ReachedMaxRestarts",
    "message": "jobset failed due to reaching max number of restarts",
    "lastTransitionTime": "2026-01-01T00:00:00Z",
}
SAID = "failed, ReachedMaxRestarts: jobset failed due to reaching max number of restarts"
THEN = 1767225600.0
"""When it failed."""


class Clusters:
    """Two of them, ``east`` and ``west``, and a root on a volume that is mounted here, too."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site, self.folder = site, folder
        for name in ("east", "west"):
            (folder / "contexts" / name).mkdir(parents=True)
        self.current("east")
        self.data = site.folder / "data"
        self.data.mkdir()
        self.root = ("--root", str(self.data / "studies"))
        site.study_dir = self.data / "studies" / "tiny"

    def current(self, context: str) -> None:
        (self.folder / "current-context").write_text(context)

    def submit(self, *words: str) -> tuple[int, str, str]:
        given = ("--executor", "k8s", "--image", "i", "--volume", f"claim:{self.data}", *self.root)
        return self.site(*SUBMIT, *given, *words)

    def rows(self) -> dict[str, dict[str, Any]]:
        return self.site.rows(*self.root)

    def cancel(self) -> tuple[int, str, str]:
        return self.site("study", "cancel", "tiny.py", *self.root)

    def jobsets(self) -> dict[str, Path]:
        """By CONTEXT/NAMESPACE/RUN."""
        found = {}
        for path in self.folder.glob("contexts/*/*/*.json"):
            run = json.loads(path.read_text())["metadata"]["annotations"]["mmdit-run"]
            found[f"{path.parent.parent.name}/{path.parent.name}/{run}"] = path
        return found

    def end(self, run_id: str, condition: dict[str, str]) -> str:
        """What a controller writes; how ``where`` begins."""
        (path,) = [path for name, path in self.jobsets().items() if name.endswith(f"/{run_id}")]
        jobset = json.loads(path.read_text())
        path.write_text(json.dumps({**jobset, "status": {"conditions": [condition]}}))
        return f"k8s:{path.parent.name}/{path.stem}: "

    def calls(self, verb: str) -> int:
        lines = (self.folder / "calls.jsonl").read_text().splitlines()
        return sum(json.loads(line)[0] == verb for line in lines)


@pytest.fixture
def site(
    mmdit: Any, compile_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Site:
    return site_in(mmdit, compile_cache, tmp_path / "slurm", monkeypatch, capsys)


@pytest.fixture
def clusters(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clusters:
    monkeypatch.setenv("FAKE_CLUSTER", str(tmp_path / "clusters"))
    monkeypatch.setenv("PATH", f"{fake_kubectl.install(tmp_path / 'kubectl')}{os.pathsep}{os.environ['PATH']}")
    return Clusters(site, tmp_path / "clusters")


def test_status_tells_why_a_jobset_ended(clusters: Clusters) -> None:
    """Also of one whose pods never came up; the cluster is asked once, and the state is that of the events."""
    assert clusters.submit("--queue", "tpu")[0] == 0
    assert clusters.rows()["rf"]["where"].endswith(": suspended in queue tpu")
    where = clusters.end(clusters.site.ids["rf"], FAILURE)
    before = clusters.calls("get")
    rows = clusters.rows()
    assert clusters.calls("get") == before + 1
    assert (rows["rf"]["state"], rows["rf"]["message"]) == ("new", where + SAID)
    assert (rows["log normal"]["state"], rows["log normal"]["message"]) == ("queued", "")
    table = clusters.site("study", "status", "tiny.py", *clusters.root)[1]
    assert table.splitlines()[1].endswith(where + SAID)
    assert clusters.submit("--only", "rf")[0] == 0
    assert (row := clusters.rows()["rf"])["state"] == "queued" and row["message"] == ""


@pytest.mark.parametrize(
    "events, state, message",
    [
        ((ATTEMPT, START), "stopped", "{}"),
        (FAILED, "failed", "exit code 137; {}"),
        ((ATTEMPT, START, {"event": "diverged", "step": 2, "message": "loss is nan"}), "diverged", "loss is nan; {}"),
        (({**ATTEMPT, "began": THEN + 60}, START), "stopped", ""),
        (({**ATTEMPT, "began": THEN + 60}, *FAILED[1:]), "failed", "exit code 137"),
    ],
    ids=["stopped", "failed", "diverged", "stopped later", "failed later"],
)
def test_what_a_cluster_remembers_changes_no_state(
    clusters: Clusters, events: tuple[dict[str, Any], ...], state: str, message: str
) -> None:
    """It is told beside what the events say, unless it is from before the last attempt."""
    assert clusters.submit("--only", "rf")[0] == 0
    where = clusters.end(clusters.site.ids["rf"], FAILURE)
    clusters.site.events("rf", *events)
    row = clusters.rows()["rf"]
    assert (row["state"], row["message"]) == (state, message.format(where + SAID))


def test_of_what_is_done_nothing_more_is_said(clusters: Clusters) -> None:
    assert clusters.submit("--only", "rf")[0] == 0
    clusters.end(clusters.site.ids["rf"], FAILURE)
    clusters.site.done("rf")
    row = clusters.rows()["rf"]
    assert (row["state"], row["message"]) == ("done", "")


def test_a_second_namespace_and_a_second_context_replace_none(clusters: Clusters) -> None:
    """All of them are asked, whatever kubectl's current context is by then; and a run is in one of them only."""
    rf, other = clusters.site.ids.values()
    assert clusters.submit("--only", "rf", "--namespace", "one")[0] == 0
    assert clusters.submit("--only", "log normal", "--namespace", "two", "--context", "west")[0] == 0
    clusters.current("west")
    assert set(clusters.jobsets()) == {f"east/one/{rf}", f"west/two/{other}"}
    assert [row["state"] for row in clusters.rows().values()] == ["queued", "queued"]
    code, _, err = clusters.submit("--namespace", "three")
    assert code == 0 and err.count("queued already") == 2 and len(clusters.jobsets()) == 2
    noted = json.loads((clusters.site.study_dir / "jobs" / "engines.json").read_text())
    volumes = [["claim", str(clusters.data)]]
    assert noted == {
        "k8s": [
            {"namespace": "one", "context": "east", "volumes": volumes},
            {"namespace": "two", "context": "west", "volumes": volumes},
        ]
    }
    code, out, _ = clusters.cancel()
    assert (code, sorted(out.split())) == (0, sorted([rf, other]))
    assert [row["state"] for row in clusters.rows().values()] == ["new", "new"]
    assert clusters.rows()["rf"]["message"].endswith(": being deleted")


def test_a_file_of_before_is_read(clusters: Clusters) -> None:
    """When there was one of each name; what is noted later stands beside it."""
    rf, _ = clusters.site.ids.values()
    assert clusters.submit("--only", "rf", "--namespace", "one")[0] == 0
    path = clusters.site.study_dir / "jobs" / "engines.json"
    (former,) = json.loads(path.read_text())["k8s"]
    path.write_text(json.dumps({"slurm": {}, "k8s": former}))
    assert clusters.rows()["rf"]["state"] == "queued" and clusters.site.calls("squeue")
    assert clusters.submit("--only", "log normal", "--namespace", "two")[0] == 0
    assert json.loads(path.read_text()) == {"slurm": [{}], "k8s": [former, {**former, "namespace": "two"}]}
    code, out, _ = clusters.cancel()
    assert code == 0 and len(out.split()) == 2 and rf in out


def test_where_one_cannot_be_asked_the_others_are(clusters: Clusters) -> None:
    """Status tells what they say, cancel ends what they have and says what is left; nothing is submitted."""
    rf, other = clusters.site.ids.values()
    assert clusters.submit("--only", "rf", "--context", "west")[0] == 0
    assert clusters.submit("--only", "log normal")[0] == 0
    (clusters.folder / "contexts" / "west").rename(clusters.folder / "west")
    code, out, err = clusters.site("study", "status", "tiny.py", *clusters.root)
    assert code == 0 and "1 queued" in out and err.count('context "west" does not exist') == 1
    code, out, err = clusters.cancel()
    assert (code, out.split()) == (2, [other])
    assert '"west" does not exist; it may have runs of this study: cancel again' in err
    assert clusters.submit()[0] == 2 and set(clusters.jobsets()) == {f"east/default/{other}"}
    (clusters.folder / "west").rename(clusters.folder / "contexts" / "west")
    assert clusters.cancel()[:2] == (0, f"{rf}\n")


def test_a_root_that_pods_and_this_host_share(clusters: Clusters) -> None:
    """Below the volume it is made here, as pods would; a volume that this host lacks is no root."""
    clusters.data.rename(clusters.site.folder / "elsewhere")
    code, _, err = clusters.submit()
    assert code == 2 and not clusters.data.exists() and len(err.splitlines()) == 1
    assert f"volume 'claim' is at {clusters.data} in pods, but this host has no" in err
    assert clusters.submit("--dry-run")[0] == 0 and not clusters.data.exists()
    (clusters.site.folder / "elsewhere").rename(clusters.data)
    assert clusters.submit()[0] == 0 and clusters.site.study_dir.is_dir()


@pytest.mark.parametrize(
    "words, network, privileged",
    [
        ((), None, None),
        (("--host-network", "--privileged"), True, {"privileged": True}),
        (("--no-host-network",), None, None),
    ],
)
def test_what_gpu_pods_may_do_with_their_node(
    clusters: Clusters, words: tuple[str, ...], network: bool | None, privileged: dict[str, bool] | None
) -> None:
    code, out, _ = clusters.submit("--only", "rf", "--topology", "h100:2x8", "--dry-run", *words)
    document = yaml.safe_load(out)
    assert code == 0 and problems(document) == []
    pod = document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod.get("hostNetwork") is network and pod["containers"][0].get("securityContext") == privileged


def test_slices_of_tpus_may_stay_off_their_nodes_network(clusters: Clusters) -> None:
    """As Autopilot wants it."""
    words = ("--only", "rf", "--topology", "2*v6e:16x16", "--dry-run")
    assert "hostNetwork: true" in clusters.submit(*words)[1]
    assert "hostNetwork" not in clusters.submit(*words, "--no-host-network")[1]
