"""
Run the state machine over one shape of ring: `python machine_run.py NAME [EXAMPLES [STEPS]]`.

Without numbers it is what the tests do: the same examples each time. With them the examples are
others each time, as many as asked for. `threads-NAME` runs programs in several threads instead. The
last line is "held" when everything held; before it stands what was driven.
"""

import faulthandler
import gc
import sys
import warnings
from typing import Final

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test
from machine_model import STATISTICS
from machine_rules import Machine, Shape
from machine_threads import PROGRAMS, run_crowd

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
EXAMPLES: Final = 100
STEPS: Final = 50
_THREADS: Final = "threads-"


def main() -> None:
    """Run what the command line says."""
    faulthandler.enable()
    warnings.simplefilter("error")
    name, *numbers = sys.argv[1:]
    examples, steps = [*map(int, numbers), *(EXAMPLES, STEPS)[len(numbers) :]]
    profile = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        derandomize=not numbers,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    gc.collect()
    gc.freeze()  # what is collected after each example is its own
    shape = SHAPES[name.removeprefix(_THREADS)]
    if name.startswith(_THREADS):

        @profile
        @given(PROGRAMS, st.integers(0, 3))
        def run(programs: list[list[tuple[int, int]]], closes: int) -> None:
            run_crowd(shape, programs, closes=closes == 3)

        run()
    else:
        kind = type(name.capitalize(), (Machine,), {"shape": shape})
        run_state_machine_as_test(kind, settings=profile)
    for what, count in sorted(STATISTICS.items()):
        sys.stdout.write(f"{what}: {count}\n")
    sys.stdout.write("held\n")


if __name__ == "__main__":
    main()
