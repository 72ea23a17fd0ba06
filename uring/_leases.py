"""Buffers that the kernel took from a group and filled."""


class Lease:
    """A provided buffer that the kernel has filled."""

    view: memoryview
