"""A model that MLflow holds: its files, its process, its probabilities.

logged_model     what a logged model holds, and whether that has changed
requirements     what a logged model asks pip for
process          a logged model loaded in a process of its own
language_model   a loaded model as token ids in, logits out
"""
