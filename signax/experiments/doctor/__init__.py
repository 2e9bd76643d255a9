"""`signax doctor`: will sign methods work on this problem?

doctor_command  flags only
subject         what is examined: a loss, a point, a stream of batches, the exact gradient
problems        subjects from the paper: Rosenbrock, the counterexample
trained         a subject from a config of `signax train`, after some steps
page            the picture
"""
