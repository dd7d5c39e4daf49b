"""Traces of requests, for monitor.

exchange.py   a request while it lasts, and the record that it becomes
record.py     what is kept of it
traces.py     passes records on, and neither slows nor fails a request
writer.py     the process that writes them to MLflow
"""
