"""
Run the state machine over one shape of ring: `python machine_run.py SHAPE [EXAMPLES [STEPS]]`.

Without numbers it is what the tests do: the same examples each time. With them the examples are
others each time, and as many as asked for. HELD is the last line when everything held.
"""

import faulthandler
import gc
import os
import sys
import warnings
from typing import Final

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from machine_model import STATISTICS
from machine_rules import Machine, Shape

from uring import SetupFlags

F = SetupFlags
SHAPES: Final = {
    "default": Shape(),
    "defer": Shape(F.SINGLE_ISSUER | F.DEFER_TASKRUN),
    "coop": Shape(F.COOP_TASKRUN | F.TASKRUN_FLAG | F.SUBMIT_ALL),
    "sqpoll": Shape(F.SQPOLL),
    "big": Shape(F.SQE128 | F.CQE32),
    "mixed": Shape(F.CQE_MIXED | F.SINGLE_ISSUER | F.DEFER_TASKRUN),
    "small": Shape(entries=4, cq_entries=4),
}
EXAMPLES: Final = 60
STEPS: Final = 50


def main() -> None:
    """Run what the command line says."""
    faulthandler.enable()
    warnings.simplefilter("error")
    name, *numbers = sys.argv[1:]
    kind = type(name.capitalize(), (Machine,), {"shape": SHAPES[name]})
    examples, steps = [*map(int, numbers), *(EXAMPLES, STEPS)[len(numbers) :]]
    profile = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        derandomize=not numbers,
        phases=[Phase.generate] if "MACHINE_TRACE" in os.environ else [Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    gc.collect()
    gc.freeze()  # what is collected after each example is its own
    run_state_machine_as_test(kind, settings=profile)
    for what, count in sorted(STATISTICS.items()):
        sys.stdout.write(f"{what}: {count}\n")
    sys.stdout.write("held\n")


if __name__ == "__main__":
    main()
