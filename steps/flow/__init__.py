"""How a step becomes a run. No step imports this room.

entry.py         one process is one entry point: command line, signals, store, exit codes
runs.py          opens a step's run, finds its inputs, calls it, writes its outputs
launch.py        starts an entry point in a process of its own
fingerprint.py   what the result of a step depends on
reuse.py         whether a finished run can be used instead
provenance.py    commit, uncommitted changes, versions, machine
typed.py         the `mlflow run` that the user typed, to be typed again for something else
room.py          whether there is the memory that a checkpoint needs
side_by_side.py  several steps at a time, and how one signal ends them all
"""
