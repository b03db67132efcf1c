"""What JobSet does when a run ends, by its exit code: the house's contract in the words of two controllers.

=====================  ==========================================  =========================================
a pod ends by          the Job fails with                          the JobSet
=====================  ==========================================  =========================================
75 (saved)             PodFailurePolicy, "... exit code 75 ..."    starts again, costs nothing
a node taken away      PodFailurePolicy, "... DisruptionTarget"    starts again, costs nothing
1 to 127, but for 75   PodFailurePolicy, "... exit code N ..."     fails: a bug, bad input, divergence
128 to 255, no code    BackoffLimitExceeded                        starts again, ``retries`` times
=====================  ==========================================  =========================================

A Job controller looks at its failed pods and takes the first rule that fits a pod; the JobSet controller takes the
first of its rules that fits any failed Job (kubernetes-sigs/jobset, pkg/controllers/failure_policy.go). A process that
is killed for memory ends by 137, one that aborts by 134: infrastructure. A pod that the kubelet evicts, for a full disk
say, counts as one whose node was taken away: Kubernetes gives both the same condition.

Needs: podFailurePolicy, Kubernetes 1.26 (stable in 1.31). Rules and RestartJobSetAndIgnoreMaxRestarts, JobSet 0.6.
BlockingRecreate, JobSet 0.7. onJobFailureMessagePatterns, JobSet 0.10: before, all that PodFailurePolicy caught was one
class. ``kubectl create`` refuses a field that the server doesn't know, so an older JobSet can't misread it.
"""

from __future__ import annotations

from typing import Any

from mmdit_jax.errors import EXIT_PREEMPTED

INFRASTRUCTURE = 128
"""Exit codes from here on: signals, a watchdog's, an image that can't start."""


def pod_failure_policy(container: str) -> dict[str, Any]:
    """Of each Job. A pod that no rule fits fails its Job by ``backoffLimit: 0``, which is another reason."""
    final = [code for code in range(1, INFRASTRUCTURE) if code != EXIT_PREEMPTED]

    def by_code(codes: list[int]) -> dict[str, Any]:
        return {"action": "FailJob", "onExitCodes": {"containerName": container, "operator": "In", "values": codes}}

    taken_away = {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    # Taken away before the codes that are final: what a process says while its node goes is not to be trusted.
    return {"rules": [by_code([EXIT_PREEMPTED]), taken_away, by_code(final)]}


def failure_policy(retries: int) -> dict[str, Any]:
    """Of the JobSet. The order decides when several slices fail at once, each in its own way.

    A slice that was preempted takes its neighbours down with errors of the network, so it comes first; a bug takes them
    down with aborts, so it comes before these.
    """
    caught = ["PodFailurePolicy"]
    patterns = [f"exit code {EXIT_PREEMPTED} matching", "condition DisruptionTarget matching"]
    return {
        "maxRestarts": retries,
        # All pods of an attempt are gone before the next begins: one that still saves would write beside it.
        "restartStrategy": "BlockingRecreate",
        "rules": [
            {
                "name": "preempted",
                "action": "RestartJobSetAndIgnoreMaxRestarts",
                "onJobFailureReasons": caught,
                "onJobFailureMessagePatterns": patterns,
            },
            {"name": "final", "action": "FailJobSet", "onJobFailureReasons": caught},
            {"name": "infrastructure", "action": "RestartJobSet"},
        ],
    }
