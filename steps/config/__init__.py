"""What can be configured, and what is said if it cannot be used.

schema.py        the table of steps, and the types of the configuration
entry_points.py  the types of sweep, serve, monitor and export
command_line.py  -P, --overrides and Hydra's forms to a Config
validation.py    refuses values that have the right type and still cannot be used
suggestions.py   names the nearest valid key or value
values.py        a Config as plain values: nested, flat, as YAML

The values are in conf/, each once.
"""
