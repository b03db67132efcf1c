"""What Kubernetes is told beside the job, and what is refused of it before anything is rendered."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from launch.executors.job import GRACE_SECONDS
from mmdit_jax.errors import UserError

BUCKET = "gs://"
_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD)S?(_|$)", re.IGNORECASE)
"""Not TOKENIZERS_PARALLELISM, though."""
OPEN = ("MMDIT_HEARTBEAT_SECONDS", "MMDIT_MIRRORS")
"""Variables of ours that say nothing of who a process is."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_BUCKET = re.compile(r"[a-z0-9][-_.a-z0-9]{1,220}[a-z0-9]")


@dataclass(frozen=True)
class Kubernetes:
    """Options of the engine: what a manifest says beside the job.

    Raises:
      UserError: a name that Kubernetes would refuse, or a secret in plain words.
    """

    image: str
    """Of the container, best by its digest; it has the package installed."""
    namespace: str = "default"
    queue: str | None = None
    """Kueue's local queue; none: nothing waits for quota."""
    secret: str | None = None
    """A Secret of the namespace; its ``secret_keys`` become variables of the same names."""
    secret_keys: tuple[str, ...] = ("WANDB_API_KEY",)
    service_account: str | None = None
    priority_class: str | None = None
    volumes: tuple[tuple[str, str], ...] = ()
    """(claim, folder): PersistentVolumeClaims that many nodes may write, or ``gs://bucket`` by Cloud Storage FUSE."""
    grace_seconds: int = GRACE_SECONDS
    """Between SIGTERM and SIGKILL."""
    env: tuple[tuple[str, str], ...] = ()
    spot: bool = False
    """On capacity that Google may take away."""
    node_labels: tuple[tuple[str, str], ...] = ()
    """More labels of the nodes, or others than the machine's (``cloud.google.com/gke-accelerator``); an empty value
    leaves one out."""
    privileged: bool = False
    """TPUs need it before GKE 1.28."""
    host_network: bool | None = None
    """The node's own network, which is faster between slices; none: several slices of TPUs. Autopilot refuses it."""
    context: str | None = None
    """Of kubectl; none: its current one."""

    def __post_init__(self) -> None:
        if not self.image or re.search(r"\s", self.image):
            raise UserError(f"image={self.image!r}: expected a container image, as REGISTRY/NAME@sha256:DIGEST")
        for field in ("namespace", "queue", "secret", "service_account", "priority_class"):
            value = vars(self)[field]
            if value is not None and not _NAME.fullmatch(value):
                raise UserError(f"{field}={value!r}: expected lower-case letters, digits and hyphens, at most 63")
        if self.grace_seconds < 0:
            raise UserError(f"grace_seconds={self.grace_seconds}: expected 0 or more")
        for source, folder in self.volumes:
            named = _BUCKET.fullmatch(source[len(BUCKET) :]) if is_bucket(source) else _NAME.fullmatch(source)
            if named is None or not PurePosixPath(folder).is_absolute():
                raise UserError(f"volume={f'{source}:{folder}'!r}: expected CLAIM:/FOLDER or gs://BUCKET:/FOLDER")
        self._refuse_variables()
        for field, names in (("volume", [folder for _, folder in self.volumes]), ("env", self._variables())):
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise UserError(f"{field}={twice[0]!r}: given twice")

    def _variables(self) -> list[str]:
        return [*(name for name, _ in self.env), *(self.secret_keys if self.secret is not None else ())]

    def _refuse_variables(self) -> None:
        for name in self._variables():
            if not _VARIABLE.fullmatch(name) or (name.startswith("MMDIT_") and name not in OPEN):
                raise UserError(f"env={name!r}: expected the name of a variable that is not one of ours (MMDIT_...)")
        for name, _ in self.env:
            if _SECRET.search(name):
                line = "a manifest is no place for secrets; put it into a Secret, and name that"
                raise UserError(f"env={name!r}: {line}")


def is_bucket(source: str) -> bool:
    """Whether a volume is a bucket, not a claim."""
    return source.startswith(BUCKET)
