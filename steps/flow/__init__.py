"""How a step becomes a run. main, sweep and sweeps use this room; no step does.

entry         one process, one entry point: signals, the store, exit codes
runs          open a run, find the runs that a step builds on, write its outputs
launch        start a step as the MLproject entry point that it is
fingerprint   what the result of a step depends on, as one hash
reuse         whether a finished run will do
provenance    which code, lock and machine a run came from
"""
