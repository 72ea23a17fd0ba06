"""
The state machine: real rings, driven at random, against a model of what must be true.

tests/machine has it: what is queued, submitted, waited for, cancelled, resized, dropped and closed
is drawn by Hypothesis; after each step the model must hold. Each shape of ring is run in a process
of its own, which a crash ends and nothing else. What is run here is the same each time, and takes
a minute or so in all; for long runs with other examples each time, say how many:

    python tests/machine/machine_run.py SHAPE EXAMPLES STEPS
    for shape in default defer coop sqpoll big mixed small threads-default; do
        python tests/machine/machine_run.py $shape 10000 100
    done

It prints what it has driven, or the steps that led to the first failure.
"""

import subprocess
import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).parent / "machine"
_SECONDS = 300  # a machine with better things to do takes several times as long as one without

pytestmark = pytest.mark.slow


def _run(name: str) -> None:
    command = [sys.executable, "-X", "faulthandler", "machine_run.py", name]
    ended = subprocess.run(
        command, cwd=_HERE, timeout=_SECONDS, capture_output=True, text=True, check=False
    )
    told = f"{ended.stdout}{ended.stderr}"
    assert ended.returncode == 0, told
    assert ended.stdout.endswith("held\n"), told
    assert ended.stderr == "", told


@pytest.mark.parametrize("shape", ["default", "defer", "coop", "sqpoll", "big", "mixed", "small"])
def test_ring_does_what_the_model_allows(ring: object, shape: str) -> None:
    """Whatever is done to it: all ends once, arrives where it belongs, and leaves nothing."""
    assert ring  # there are rings here
    _run(shape)


@pytest.mark.parametrize("shape", ["default", "sqpoll", "coop", "small"])
def test_threads_lose_nothing_of_each_other(ring: object, shape: str) -> None:
    """Programs in several threads on one ring, which may be closed under them: the same holds."""
    assert ring
    _run(f"threads-{shape}")
