// The suite's version, once: everything else reads it here.  What it is made of is in its own go.mod.
module pyoci.invalid/conformance/runtime-tools

go 1.21

require github.com/opencontainers/runtime-tools v0.9.1-0.20251114084447-edf4cb3d2116
