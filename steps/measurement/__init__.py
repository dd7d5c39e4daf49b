"""Loaded candidates, measured side by side.

measure.py  in which order candidates are asked, timed and compared, and what a failure means
worker.py   what runs in a candidate's own process
"""
