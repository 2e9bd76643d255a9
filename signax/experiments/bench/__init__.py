"""`signax bench`: what a step costs here, in ratios that anyone can measure again.

bench_command   flags only
settings        what was asked for
timing          contestants measured in turns: medians, and ratios with their spread
kernels         (a) one worker alone: signs, packing, counting, the local step
bits            (b) bits per coordinate of every algorithm and wire, from HLO
steps           (c) whole steps and exchanges on the devices at hand
model           the trees and the network that are stepped
local           the same in several local processes
network         joins them by a slow network (Linux namespaces)
report          tables, JSON
chart           the picture
"""
