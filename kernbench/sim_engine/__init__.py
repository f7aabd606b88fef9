"""The engine: the record of a run, what it costs on a machine, when everything happens, and how to show it."""
