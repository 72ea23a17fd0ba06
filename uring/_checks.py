"""What is refused before it reaches the kernel, which would cut it off or take it for another."""

from enum import IntFlag


def check_range(name: str, number: object, low: int, high: int) -> int:
    """Return `number`, an integer from `low` to `high`."""
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"{name} must be an integer, not {number!r}")
    value = int.__index__(number)  # a subclass may lie in its comparisons, but not here
    if not low <= value <= high:
        raise ValueError(f"{name} must be in {low}..{high}, not {value}")
    return value


def check_flags(name: str, flags: int, allowed: IntFlag) -> int:
    """Return `flags`, none but those in `allowed`: others would make another operation of it."""
    kind = type(allowed)
    if type(flags) not in {kind, int}:
        raise TypeError(f"{name} must be {kind.__name__}, not {flags!r}")
    value = int(flags)  # which is combined ten times faster
    if value & ~int(allowed):
        raise ValueError(f"{name} may be a combination of {allowed!r}, not {kind(flags)!r}")
    return value
