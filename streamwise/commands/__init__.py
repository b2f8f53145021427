"""The commands, by what they are about. Each parses its flags, calls one function of runs/, says how it went.

Heavy imports are inside the functions, so that `--help` is quick.
"""
