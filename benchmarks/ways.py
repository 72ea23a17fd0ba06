"""What a library offers to the measurement: its ways of doing the tasks."""

from collections.abc import Callable

Way = Callable[[int], object]
"""Does a task so many times; returns the sum of user_data and res of (the last of) its results."""

Ways = dict[str, Way]
"""By the task's name, as "nop256"; a second way of the same library is "nop256/its name"."""


def repeated(call: Callable[[], object]) -> Way:
    """Make a way of a call that does the task once."""

    def way(repeats: int) -> object:
        result = None
        for _ in range(repeats):
            result = call()
        return result

    return way
