"""Loaded candidates, measured in turns, so that what slows one slows all.

measure.py  in which order candidates are asked and timed, and what a failure means
worker.py   what runs inside a candidate's process
"""
