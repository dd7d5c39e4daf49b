"""Models as MLflow logged them.

logged_model    what a logged model holds, and whether it is still that
requirements    what a logged model asks pip for
process         a logged model in a process of its own
dtype           the dtype that a PyTorch model computes in here
language_model  a loaded model as a language model: token ids and logits
"""
