"""promotions_at_once.py VERSION ...: make each VERSION champion at the same moment, each in a process of its own."""

import os
import sys

from steps.registry.aliases import changing, make_champion

go = os.pipe()
children = []
for version in sys.argv[1:]:
    if (child := os.fork()) == 0:  # before the store is opened: no two share a connection
        os.close(go[1])
        os.read(go[0], 1)  # returns once the parent has closed the other end
        status = 1
        try:
            with changing("echo"):
                make_champion("echo", version, "one of several")
            status = 0
        finally:
            os._exit(status)
    children.append(child)
os.close(go[1])
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
