"""A simulator of Linux for x86-64 programs, over Unicorn and this library: what a user of the library would write.

It runs static and dynamic ELF files with the host's files and descriptors. The host's kernel keeps the files; memory,
processes, threads, signals and futexes are simulated here. It is no sandbox: a program may open what the user may.

- ``cpu``, ``fpu``: an engine that runs in a task's address space.
- ``kernel``: whose turn it is, and how a system call is made, waits and goes on. ``waits``: what for.
- ``process``: processes and their tasks; ``files``: descriptors; ``signals``, ``frame``: signals and their handlers.
- ``table``, ``calls/``: the system calls, a function each.
"""
