"""What becomes of a run by its exit code: Job's and JobSet's controllers, played as their documentation says."""

import re
from dataclasses import dataclass, field

import pytest

from launch.executors.kubernetes_policy import failure_policy, pod_failure_policy
from mmdit_jax.errors import EXIT_BAD_INPUT, EXIT_DIVERGED, EXIT_PREEMPTED

FREE, COUNTED, OVER = "RestartJobSetAndIgnoreMaxRestarts", "RestartJobSet", "FailJobSet"


@dataclass(frozen=True)
class Pod:
    """A pod that failed: its container's exit code, where it came so far, and its conditions."""

    code: int | None
    conditions: dict[str, str] = field(default_factory=dict)
    container: str = "train"


def job_failure(pods: list[Pod]) -> tuple[str, str]:
    """Reason and message of a failed Job: kubernetes.io/docs/concepts/workloads/controllers/job, "Pod failure policy";
    the messages are those of kubernetes/kubernetes, pkg/controller/job/pod_failure_policy.go."""
    for number, pod in enumerate(pods):
        for index, rule in enumerate(pod_failure_policy("train")["rules"]):
            assert rule["action"] == "FailJob"
            end = f"matching FailJob rule at index {index}"
            if "onExitCodes" in rule:
                codes = rule["onExitCodes"]
                assert codes["operator"] == "In"
                if pod.container == codes["containerName"] and pod.code in codes["values"]:
                    text = (
                        f"Container train for pod ns/run-slice-0-{number}-abcde failed with exit code {pod.code} {end}"
                    )
                    return "PodFailurePolicy", text
            for wanted in rule.get("onPodConditions", []):
                if pod.conditions.get(wanted["type"]) == wanted["status"]:
                    text = f"Pod ns/run-slice-0-{number}-abcde has condition {wanted['type']} {end}"
                    return "PodFailurePolicy", text
    return "BackoffLimitExceeded", "Job has reached the specified backoff limit"


def action_on(*jobs: list[Pod]) -> str:
    """What the JobSet does when these Jobs, each with its failed pods, have failed."""
    failures = [job_failure(pods) for pods in jobs]
    for rule in failure_policy(3)["rules"]:
        for reason, message in failures:
            reasons, patterns = rule.get("onJobFailureReasons"), rule.get("onJobFailureMessagePatterns")
            fits = not reasons or reason in reasons
            if fits and (not patterns or any(re.search(pattern, message) for pattern in patterns)):
                return rule["action"]
    return COUNTED  # JobSet's own default


@pytest.mark.parametrize("code", range(1, 256))
def test_every_exit_code_has_the_contracts_answer(code):
    expected = FREE if code == EXIT_PREEMPTED else OVER if code < 128 else COUNTED
    assert action_on([Pod(code)]) == expected


def test_the_codes_that_have_names():
    assert action_on([Pod(EXIT_BAD_INPUT)]) == action_on([Pod(EXIT_DIVERGED)]) == action_on([Pod(1)]) == OVER
    assert action_on([Pod(137)]) == action_on([Pod(134)]) == COUNTED  # killed for memory, aborted


@pytest.mark.parametrize("code", [None, 137, 143, 1, EXIT_PREEMPTED])
def test_a_node_taken_away_costs_nothing_whatever_the_process_says(code):
    assert action_on([Pod(code, {"DisruptionTarget": "True"})]) == FREE


def test_a_disruption_that_did_not_happen_is_none():
    assert action_on([Pod(137, {"DisruptionTarget": "False"})]) == COUNTED


def test_a_pod_that_never_started_is_infrastructure():
    assert action_on([Pod(None)]) == COUNTED


def test_other_containers_of_the_pod_decide_nothing():
    assert action_on([Pod(1, container="gke-gcsfuse-sidecar")]) == COUNTED


def test_of_several_slices_the_cause_wins_over_what_it_did_to_the_others():
    preempted, bug, aborted = [Pod(EXIT_PREEMPTED)], [Pod(1)], [Pod(134)]
    assert action_on(bug, preempted) == action_on(aborted, preempted) == FREE
    assert action_on(aborted, bug) == OVER


def test_restarts_wait_for_all_pods_and_are_counted():
    policy = failure_policy(5)
    assert policy["maxRestarts"] == 5 and policy["restartStrategy"] == "BlockingRecreate"


def test_the_lists_are_such_as_kubernetes_takes():
    for rule in pod_failure_policy("train")["rules"]:
        values = rule.get("onExitCodes", {}).get("values", [1])
        # In ascending order, each once, 255 at most, and no 0: batch/v1's validation.
        assert values == sorted(set(values)) and 0 not in values and len(values) <= 255
