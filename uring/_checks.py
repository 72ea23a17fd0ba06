"""What is refused before it reaches the kernel, which would cut it off or take it for another."""


def check_range(name: str, number: object, low: int, high: int) -> int:
    """Return `number`, an integer from `low` to `high`."""
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"{name} must be an integer, not {number!r}")
    value = int.__index__(number)  # a subclass may lie in its comparisons, but not here
    if not low <= value <= high:
        raise ValueError(f"{name} must be in {low}..{high}, not {value}")
    return value
