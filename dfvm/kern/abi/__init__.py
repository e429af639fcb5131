"""What programs were built for, one package for each ABI. There is one: linux."""
