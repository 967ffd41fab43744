"""pyoci: an OCI container runtime.  A container is a program of kernel calls; see ARCHITECTURE.md."""

VERSION = "0.1.0"
SPEC_VERSION = "1.3.0"
