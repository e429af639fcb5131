"""The commands behind `dfvm`, a module each. They parse, print and return exit codes; what they
show comes from the layers below.

    main.py     `dfvm` itself: which command; exit codes, messages
    options.py  the options that commands share
    run.py      dfvm run
    trace.py    dfvm trace
    stats.py    what --stats prints
"""
