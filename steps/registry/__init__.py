"""Versions of a registered model, and the aliases that move between them.

versions.py   each content is one version; its tags say where it comes from
aliases.py    champion, challenger, previous, and the history
promotion.py  is a version at least as good as the champion?
card.py       the model card
"""
