"""A registered model: its versions, and which of them is champion.

versions    one version for each content, with tags that say where it comes from
aliases     champion, previous, challenger, and the history of champions
promotion   whether a version is at least as good as the champion
card        the model card of a version
"""
