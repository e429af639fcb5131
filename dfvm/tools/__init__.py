"""The commands behind `dfvm`, a module each. They parse, print and return exit codes; what they
show comes from the layers below."""
