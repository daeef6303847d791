"""The program `syncd`."""
