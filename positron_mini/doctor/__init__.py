"""A preflight that proves the device: does it compute right, does it repeat itself, how fast is it, and in which precision?

`kernels` compares single operations with the CPU in double precision, `training` whole models with the CPU in fp32, `speed` measures,
`examine` runs all of it for one device, where need be in a process that may die, and `report` says what to do with the result.
"""
