"""commands - what the commands of `shm-engine` do, a module each.

Why:        cli.py names commands, options and help, and is all that `--help` loads; each command
            loads its own module when it runs.
                 serve.py stat.py verify.py dump.py repair.py checkpoint.py doctor.py
                 condition.py  who has a folder open      files.py     what its files say
                 terminal.py   text, errors, questions
Used by:    cli.py
"""
