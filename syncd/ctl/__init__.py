"""The program `syncctl`: the standard library and `syncd.text` alone, for it must start fast."""
