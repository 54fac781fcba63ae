"""The inside of the `python` tool: one warm interpreter, and a process in namespaces of its own for each call.

    caller │ shepherd ──► server ──► program               one fork a call: as an ordinary user without capabilities,
           │                │          ┊ joins             in a user namespace of its own, behind a filter of system
           │                └► nursery ──► init            calls and under limits
           │                               pid 1 of the call, with its namespaces, made ahead

    libc         system calls that Python 3.11 has no name for     isolation   its degrees, and what each can do
    visible      what a program may read, and as what              sandboxes   places with namespaces
    namespaces   the sandbox of the server, and of one call        shared      places without
    inits        surroundings made ahead                           limits      of one process, and of a call's memory
    seccomp      system calls that no program may make             warm        what is imported before any call
    landlock     files, where there are no namespaces              program     runs code as an interpreter does
    probe        whether this machine has what it takes            server      forks, kills and reaps

It knows nothing of this project and needs the standard library alone, so any interpreter can run it: `BOOT` loads it
by the name `sandbox`, which is why its modules import each other relatively.
"""

BOOT = """
import importlib.util, sys
folder = sys.argv.pop(1)
spec = importlib.util.spec_from_file_location("sandbox", folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules["sandbox"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["sandbox"])
importlib.import_module("sandbox." + sys.argv.pop(1)).main()
"""
"""`python -I -c BOOT FOLDER MODULE ...` runs `main` of one of the modules."""
