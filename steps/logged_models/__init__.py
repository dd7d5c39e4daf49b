"""A model that MLflow holds: its files, its process, its probabilities.

logged_model.py    what a logged model holds, and whether that has changed
requirements.py    what a logged model asks pip for
process.py         a logged model loaded in a process of its own
language_model.py  a loaded model as token ids in, logits out
"""
