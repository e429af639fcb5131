"""What watches the machine from outside. Subscribes to the probes of `dfvm.vm.probe`; nothing below
this layer knows of it.

    fault_trace.py  each fault as a line or a JSON object, and a summary
    symbols.py      which function of which file an address lies in
"""
