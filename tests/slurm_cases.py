"""Jobs for Slurm, names that a shell would take for more, and the options of a script as sbatch reads them."""

from __future__ import annotations

import dataclasses
from typing import Any

from launch.executors.job import Job, Machine
from launch.planning.target import parse

COMMAND = ("/opt/mmdit/bin/python", "-m", "launch.cli", "train", "ladder", "--root", "/scratch/studies", "--run")
AFTER = ("/opt/mmdit/bin/python", "-m", "launch.executors.after")
JOB = Job("d24-rf-0123456789-89abcdef", "ladder", ("d24-rf-0123456789",), COMMAND, "/scratch/studies/ladder", AFTER)
H100 = Machine(parse("h100:2x8"), nodes=2, processes_per_node=8, cpus_per_process=12, memory_gib=1000.0)


def job(**changes: Any) -> Job:
    return dataclasses.replace(JOB, **changes)


HOSTILE = {
    "space": "a root",
    "single": "it's",
    "double": 'a "root"',
    "both": "it's a \"root\" of 'mine'",
    "command": "$(touch pwned)",
    "backticks": "`touch pwned`",
    "variable": "$HOME ${PATH}",
    "control": "a; touch pwned & touch pwned | touch pwned > pwned",
    "comment": "a # b #SBATCH --array=0-9",
    "glob": "* ? [a-z] ~ {a,b} !!",
    "dash": "--wrap=touch pwned",
    "unicode": "Größe 漢字",
}


def sbatch_words(line: str) -> list[str]:
    """Words of what follows #SBATCH, by sbatch's rules: quotes, a backslash before any character, # for comments."""
    words: list[str] = []
    word: str | None = None
    quote = ""
    characters = iter(line)
    for character in characters:
        if character == "\\":
            word = (word or "") + next(characters)
        elif quote:
            word, quote = (word, "") if character == quote else ((word or "") + character, quote)
        elif character in "'\"":
            word, quote = word or "", character
        elif character == "#":
            break
        elif character.isspace():
            words += [] if word is None else [word]
            word = None
        else:
            word = (word or "") + character
    assert not quote, line
    return words + ([] if word is None else [word])


def options_of(script: str) -> list[str]:
    """All options of a script, of which each has its line."""
    first, *lines = script.splitlines()
    assert first == "#!/bin/bash"
    told = [line for line in lines if line.startswith("#SBATCH")]
    assert lines[: len(told)] == told  # sbatch stops reading at the first command
    found = [sbatch_words(line.removeprefix("#SBATCH ")) for line in told]
    assert all(len(words) == 1 for words in found), found
    return [words[0] for words in found]
