"""Becomes another Python command, with a text typed into it: typed.py TEXT ARGUMENT..."""

import os
import sys

text, *arguments = sys.argv[1:]
reading, writing = os.pipe()
os.write(writing, f"{text}\n".encode())
os.close(writing)
os.dup2(reading, 0)
os.execv(sys.executable, [sys.executable, *arguments])
