"""`signax bench`: what a step costs here, in ratios that anyone can measure again.

bench_command   flags only
settings        what was asked for
timing          contestants measured in turns: medians, and ratios with their spread
kernels         (a) one worker alone: signs, packing, counting, the local step
bits            (b) bits per coordinate of every algorithm and wire, from HLO
steps           (c) whole steps and exchanges on the devices at hand
hosts           (d) memory and bits of models that are cut inside each host
model           the trees and the network that are stepped
local           the same in several local processes
network         joins them by a slow network (Linux namespaces)
report          tables, JSON
chart           the picture

`signax bench --to_accuracy`, time and megabytes until a target:

race_settings   its flags
race_run        starts processes for each bandwidth, gathers what they measured
race            one process's share: runs on the clock
race_report     rows and tables
race_chart      the picture
"""
