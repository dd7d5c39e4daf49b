"""What can be configured, and what is said if it cannot be used.

schema.py                   the table of steps, and the types of the configuration
onnx.py                     the types of what build_onnx_wrapper is asked for
entry_points.py             the types of sweep, serve, monitor and export
command_line.py             -P, --overrides and Hydra's forms to a Config
validation.py               refuses values that have the right type and still cannot be used
onnx_validation.py          of build_onnx_wrapper
entry_points_validation.py  of serve, monitor and export
refusal.py                  the error of such a value, and conditions that the checks share
suggestions.py              names the nearest valid key or value
values.py                   a Config as plain values: nested, flat, as YAML

The values are in conf/, each once.
"""
