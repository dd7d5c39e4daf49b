"""What can be configured, and what is said when a value cannot be used.

schema         the steps, and the types of all values; the values are in conf/
command_line   from -P and Hydra's forms to a Config
validation     which values cannot be used, and what to give instead
suggestions    the nearest key or value to one that does not exist
values         a Config as plain values: nested, flat, as YAML
"""
