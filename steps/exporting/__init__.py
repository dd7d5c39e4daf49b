"""A registered version as a folder that answers without MLflow, torch and transformers.

version.py    which version is exported, and whether it is what was registered
licence.py    the checkpoint's licence and card
folder.py     what the folder holds
readme.py     its README: the model card, and how the folder is used
checksums.py  its SHA256SUMS: written, and compared with the folder
archive.py    the folder as one file, the same bytes each time
example.py    the program in the folder that answers a question
rehearsal.py  has the example answer before the folder appears
rehearse.py   the process in which it does
"""
