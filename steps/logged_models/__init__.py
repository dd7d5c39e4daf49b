"""Models as MLflow logged them.

logged_model.py    what a logged model holds, and whether it is still that
requirements.py    what a logged model asks pip for
process.py         a logged model in a process of its own
dtype.py           the dtype that a PyTorch model computes in here
language_model.py  a loaded model as a language model: token ids and logits
"""
