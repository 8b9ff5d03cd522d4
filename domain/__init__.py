"""What wearon is about: credits, sessions and tasks, and the rules between them.

Standard library only. Read in this order: ``credits`` (who pays), ``sessions`` (what is paid
for), ``tasks`` (what travels to a worker), ``ports`` (what the outside must provide) and ``errors``
(what may go wrong), then the use cases: ``submission`` (charge, record, push), ``generation``
(claim, work, settle), ``recovery`` (bring every session to its end), ``reading`` and ``uploads``
(pictures that callers bring along); ``circuit`` tells a worker when to begin nothing, and
``deadlines`` bounds waits that are many.
"""
