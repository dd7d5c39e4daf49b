"""Loaded candidates, measured in turns, so that what slows one slows all.

measure   in which order candidates are asked and timed, and what a failure means
worker    what runs inside a candidate's process
"""
