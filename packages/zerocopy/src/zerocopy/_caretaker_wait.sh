#!/bin/sh
# The caretaker while it has nothing to do: waits for its publisher at a tenth of the memory of a Python process.
# Arguments: Python, and _caretaker_process.py, which is run when the publisher gives up a file or has ended.
# Standard input is the pipe from the publisher, standard output the list of its files.
cd /
exec 3<&0 # a shell gives a command in the background another standard input
{
    read -r line || line=ended
    [ "$line" = done ] || exec "$1" -I -S "$2" "$0" 3<&-
} <&3 & # the parent ends at once: a process that stops the publisher's children spares this one
