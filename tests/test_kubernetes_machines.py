"""Which nodes of GKE a topology is, and what pods ask for to get them."""

import dataclasses

import pytest
from test_kubernetes import OPTIONS, container_of, job_of, pod_of

from launch.executors.kubernetes import manifest
from launch.executors.kubernetes_machines import machine_for
from launch.planning.target import parse
from mmdit_jax.errors import UserError


@pytest.mark.parametrize(
    ("topology", "nodes", "chips", "label"),
    [
        ("v4:2x2x1", 1, 4, "2x2x1"),
        ("v4:4x4x8", 32, 4, "4x4x8"),
        ("v5e:1x1", 1, 1, "1x1"),
        ("v5e:2x2", 1, 4, "2x2"),
        ("v5e:2x4", 1, 8, "2x4"),
        ("v5e:16x16", 64, 4, "16x16"),
        ("v5p:8x8x4", 64, 4, "4x8x8"),  # GKE writes rising sides
        ("v6e:4x4", 4, 4, "4x4"),
        ("2*v6e:2x4", 4, 4, "2x4"),  # several hosts, or GKE doesn't join slices
        ("tpu7x:1x1x1", 1, 1, "1x1x1"),
        ("tpu7x:4x4x4", 16, 4, "4x4x4"),
        ("3*v5p:2x2x2", 6, 4, "2x2x2"),
    ],
)
def test_hosts_of_tpus(topology, nodes, chips, label):
    job = job_of(topology)
    assert (job.machine.nodes, job.machine.chips_per_node, job.machine.processes_per_node) == (nodes, chips, 1)
    document = manifest(job, job.runs[0], OPTIONS)
    assert container_of(document)["resources"] == {"limits": {"google.com/tpu": chips}}
    assert pod_of(document)["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == label
    replicated = document["spec"]["replicatedJobs"][0]
    assert replicated["replicas"] * replicated["template"]["spec"]["completions"] == nodes
    # A slice of several hosts has a node pool of its own; hosts of one run each share theirs.
    assert ("alpha.jobset.sigs.k8s.io/exclusive-topology" in document["metadata"]["annotations"]) == (
        nodes > job.machine.target.slices
    )


def test_two_hosts_of_four_chips_may_be_chosen():
    assert machine_for(parse("v5e:2x4"), chips_per_host=4).nodes == 2


def test_labels_of_nodes_can_be_changed():
    options = dataclasses.replace(
        OPTIONS, node_labels=(("cloud.google.com/gke-accelerator", "nvidia-h100-mega-80gb"), ("pool", "mine"))
    )
    job = job_of("h100:2x8")
    assert pod_of(manifest(job, job.runs[0], options))["nodeSelector"] == {
        "cloud.google.com/gke-accelerator": "nvidia-h100-mega-80gb",
        "pool": "mine",
    }
    none = dataclasses.replace(OPTIONS, node_labels=(("cloud.google.com/gke-accelerator", ""),))
    assert "nodeSelector" not in pod_of(manifest(job, job.runs[0], none))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: machine_for(parse("v5e:3x3")), "v5e:3x3.*1x1, 2x2, 2x4"),
        (lambda: machine_for(parse("v5p:2x2x3")), "no such slice of a v5p"),
        (lambda: machine_for(parse("v5p:1x1x1")), "no such slice of a v5p"),
        (lambda: machine_for(parse("2*v5e:2x2")), "slices of several hosts only"),
        (lambda: machine_for(parse("v5e:4x4"), 8), "chips_per_host=8: v5e:4x4 has hosts of 4"),
    ],
)
def test_a_machine_that_is_not_to_be_had_is_refused_in_a_line(make, words):
    with pytest.raises(UserError, match=words) as error:
        make()
    assert "\n" not in str(error.value)
