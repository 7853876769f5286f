"""Tests of the compute device: is it correct, is it reproducible, how fast is it, and in which precision?

`kernels` compares single operations with the CPU in double precision, `training` whole models with the CPU in fp32, `speed` measures,
`examine` runs all checks of one device, `isolate` does so in a child process that may crash, and `report` draws the conclusions.
"""
