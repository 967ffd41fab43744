"""One module per command, named like it, with `run(settings, options) -> exit status`; `pyoci.cli` has their flags."""
