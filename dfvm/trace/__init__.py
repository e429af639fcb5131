"""What watches the machine from outside. Subscribes to the probes of `dfvm.vm.probe`; nothing below
this layer knows of it."""
