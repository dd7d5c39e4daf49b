"""What happens when a process dies, a disk fills, a server goes away, or a secret is typed.

processes.py      a process ends with the one that started it, and no run stays RUNNING
lock.py           one process of this machine at a time
memory.py         how much memory there is left
outages.py        a full disk or a missing server: one line instead of a trace
store_check.py    asked at the start: can the flow work with this tracking server?
artifact_root.py  asked at the start: can artifacts be written here, and read by others?
search.py         runs in the whole store, however much it holds
secrets.py        refuses secrets in parameters, and removes them from what is stored
"""
