"""How things are told to the compiler: the platform that a trace is for, loops over each device's examples, functions
with a batching rule of their own, zeros that are made late, weighted sums in the form that is quickest.
"""

from jaxdp.lowering._target import target as target
