"""Handwritten digits, eight workers, the same data for everyone (iid).

Shows    on iid data the vote costs nothing: all of these train the network as SGD does
Command  signax train --config=configs/digits.py:RUN      RUN is one of the names below
Cost     10 s each on two CPU cores (half of it compilation), no download
"""
