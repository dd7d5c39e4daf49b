"""Loaded candidates, measured side by side.

measure  in which order candidates are asked, timed and compared, and what a failure means
worker   what runs in a candidate's own process
"""
