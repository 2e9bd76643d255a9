"""Room 5. The named algorithms, each one chain: the worker's links, the network, the common step.

A sign has no unit, so the learning rate of a sign method is in parameter units per step: with 1e-3
every coordinate moves by 1e-3. Where scales are sent as well (`ef_sign_sgd`, `double_squeeze`,
`ssdm(rescale=True)`) it is the usual learning rate of SGD. With `axis_name=None` there is one
worker and no network.
"""
