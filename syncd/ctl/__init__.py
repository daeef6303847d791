"""The program `syncctl`: uses only the standard library and `syncd.text`, because it must start fast."""
