"""How an address space is built: its tables, its memory, and the calls that change it. Internal."""
