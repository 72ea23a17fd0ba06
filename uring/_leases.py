"""A provided buffer that a completion has taken, as long as it is looked at."""


class Lease:
    """Memory of a buffer group that one completion has filled."""

    view: memoryview
