"""A ``kubectl`` with an API server of its own: JobSets are files of a folder, ``FAKE_CLUSTER``.

It keeps what the executor relies on: one object of a name in a namespace, refused fields it doesn't know, label
selectors, and deletion in the foreground that leaves the object until its pods are gone. ``install`` puts it on PATH.
Below ``contexts`` of that folder lie clusters by the names of their contexts; ``current-context`` names one.
"""

import json
import os
import sys
import time
from pathlib import Path

import yaml

KNOWN = ("apiVersion", "kind", "metadata", "spec")


def install(folder: Path) -> Path:
    """A folder for PATH that has this file as ``kubectl``."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "kubectl"
    program.write_text(f"#!{sys.executable}\n" + Path(__file__).read_text())
    program.chmod(0o755)
    return folder


def main(arguments: list[str]) -> int:
    cluster = Path(os.environ["FAKE_CLUSTER"])
    with (cluster / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    if (cluster / "no_jobset").exists():
        return fail('error: the server doesn\'t have a resource type "jobsets"')
    options = dict(item.split("=", 1) for item in arguments if item.startswith("--") and "=" in item)
    words = [item for item in arguments if not (item.startswith("--") and "=" in item)]
    values = {
        name: words[words.index(name) + 1] for name in ("--namespace", "--context", "-l", "-o", "-f") if name in words
    }
    free = [
        item for at, item in enumerate(words) if not item.startswith("-") and (at == 0 or words[at - 1] not in values)
    ]
    current = cluster / "current-context"
    if free == ["config", "current-context"]:
        print(current.read_text() if current.exists() else "")
        return 0 if current.exists() else fail("error: current-context is not set")
    context = values.get("--context", current.read_text() if current.exists() else None)
    if context is not None and (cluster / "contexts").exists():
        cluster = cluster / "contexts" / context
        if not cluster.exists():
            return fail(f'error: context "{context}" does not exist')
    if values["--namespace"] == "forbidden":
        return fail('Error from server (Forbidden): jobsets.jobset.x-k8s.io is forbidden: User "u" cannot do that')
    home = cluster / values["--namespace"]
    home.mkdir(exist_ok=True)
    if free[0] == "create":
        return create(home, yaml.safe_load(sys.stdin), options)
    assert free[1] == "jobsets.jobset.x-k8s.io", free
    return get(home, free[2:], values) if free[0] == "get" else delete(home, free[2:], words, options)


def create(home: Path, jobset: dict, options: dict) -> int:
    assert options["--validate"] == "strict"
    name = jobset["metadata"]["name"]
    unknown = [key for key in jobset if key not in KNOWN]
    if (home.parent / "old_jobset").exists():
        unknown = ["spec.failurePolicy.rules[0].onJobFailureMessagePatterns"]
    if unknown:
        return fail(
            f'Error from server (BadRequest): error when creating "STDIN": JobSet in version "v1alpha2" cannot be '
            f'handled as a JobSet: strict decoding error: unknown field "{unknown[0]}"'
        )
    assert jobset["metadata"]["namespace"] == home.name
    queued = "kueue.x-k8s.io/queue-name" in jobset["metadata"]["labels"]
    jobset["spec"].setdefault("suspend", queued)  # Kueue's webhook
    draft = home / f"{name}.{os.getpid()}"
    draft.write_text(json.dumps(jobset))
    try:
        os.link(draft, home / f"{name}.json")
    except FileExistsError:
        return fail(
            f'Error from server (AlreadyExists): error when creating "STDIN": jobsets.jobset.x-k8s.io "{name}" '
            "already exists"
        )
    finally:
        draft.unlink()
    print(f"jobset.jobset.x-k8s.io/{name} created")
    return 0


def get(home: Path, names: list[str], values: dict) -> int:
    items = [json.loads(path.read_text()) for path in sorted(home.glob("*.json"))]
    if names:
        found = [item for item in items if item["metadata"]["name"] == names[0]]
        print(json.dumps(found[0]) if found else "")
        return 0
    key, value = values["-l"].split("=")
    items = [item for item in items if item["metadata"]["labels"].get(key) == value]
    print(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    return 0


def delete(home: Path, names: list[str], words: list[str], options: dict) -> int:
    assert options["--cascade"] == "foreground"
    for name in names:
        path = home / f"{name}.json"
        if not path.exists():
            continue
        jobset = json.loads(path.read_text())
        if options["--wait"] == "false":  # its pods have their grace yet
            jobset["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            path.write_text(json.dumps(jobset))
            continue
        time.sleep(0.01)
        path.unlink(missing_ok=True)
    return 0


def fail(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
