"""Provided buffers that the kernel has filled."""


class Lease:
    """A buffer that the kernel took from a group, and what it wrote there."""

    view: memoryview
