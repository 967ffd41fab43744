"""The only place that knows a number of the kernel's."""
